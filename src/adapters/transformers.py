"""The encoder as a Hugging Face `transformers` model; this file is copied into each exported folder.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    classify = pipeline("audio-classification", model=folder, trust_remote_code=True)

The input is the waveform: the mel front end is part of the model, the feature extractor only pads.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature, PretrainedConfig, PreTrainedModel, SequenceFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from src.models.classifier import Standardize, make_head
from src.models.log_mel import LogMel
from src.models.vit import AudioViT, Layer, Pooling, pool


class AudioEncoderConfig(PretrainedConfig):
    """Args: encoder: `AudioViT.architecture`. classifier: `AudioClassifier.settings`; None: mean pooling.

    Other keys of an export's config.json become attributes.
    """

    model_type = "audio-encoder"

    def __init__(
        self, encoder: dict[str, Any] | None = None, classifier: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.encoder, self.classifier = encoder, classifier
        self.hidden_size = encoder["width"] if encoder else None


class AudioEncoderFeatureExtractor(SequenceFeatureExtractor):
    """Pad clips to the longest in the batch: input_values (B, T), attention_mask (B, T)."""

    model_input_names = ["input_values", "attention_mask"]

    def __init__(self, sampling_rate: int = 16000, feature_size: int = 1, **kwargs: Any) -> None:
        kwargs.setdefault("padding_value", 0.0)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, **kwargs)

    def __call__(
        self,
        raw_speech: np.ndarray | list[np.ndarray],
        sampling_rate: int | None = None,
        padding: bool | str = True,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """raw_speech: (T,), (B, T) or a list of (T,), mono, in [-1, 1].

        Raises:
            ValueError: the sampling rate is not the encoder's.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(f"the encoder needs {self.sampling_rate} Hz, the audio has {sampling_rate}; resample it")
        single = isinstance(raw_speech, np.ndarray | Tensor) and raw_speech.ndim == 1
        clips = [raw_speech] if single or np.isscalar(raw_speech[0]) else raw_speech
        batch = BatchFeature({"input_values": [np.asarray(clip, dtype=np.float32) for clip in clips]})
        kwargs.setdefault("return_attention_mask", True)
        return self.pad(batch, padding=padding, return_tensors=return_tensors, **kwargs)


class AudioEncoderPreTrainedModel(PreTrainedModel):
    """What the encoder and the classifier share: the network from the configuration, and initial weights."""

    config_class = AudioEncoderConfig
    main_input_name = "input_values"
    input_modalities = "audio"
    encoder: AudioViT

    def _make_encoder(self) -> AudioViT:
        architecture = dict(self.config.encoder)
        log_mel = LogMel(**architecture.pop("log_mel"))
        return AudioViT(**architecture, log_mel=log_mel)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize what a file does not contain: the front end's buffers, a new head."""
        if isinstance(module, LogMel):
            module.reset_buffers()
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Standardize):
            nn.init.zeros_(module.mean)
            nn.init.ones_(module.deviation)

    def _tokens(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None,
        layer: Layer | list[Layer] = None,
        pooling: Pooling = "mean",
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, D) and their pooled vector (B, D) or (B, 2 D)."""
        samples = torch.full((len(input_values),), input_values.shape[1], device=input_values.device)
        length = samples if attention_mask is None else attention_mask.sum(1)
        tokens = self.encoder(input_values, length, layer)
        return tokens, pool(tokens, self.encoder.num_tokens(length), pooling)


class AudioEncoderModel(AudioEncoderPreTrainedModel):
    """last_hidden_state: tokens (B, N, D), 40 ms each, zero beyond a clip's end. pooler_output: their mean (B, D)."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = self._make_encoder()
        self.post_init()

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        tokens, embedding = self._tokens(input_values, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=embedding)


class AudioEncoderForAudioClassification(AudioEncoderPreTrainedModel):
    """logits: (B, num_labels). The head is newly initialized if the export has none."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = self._make_encoder()
        read = config.classifier or {}
        self.layer, self.pooling = read.get("layer"), read.get("pooling", "mean")
        self.head = make_head(self.encoder.embed_dim, self.layer, self.pooling, config.num_labels or 2)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """labels: (B,) class indices, or (B, num_labels) probabilities for multi-label classification."""
        tokens, embedding = self._tokens(input_values, attention_mask, self.layer, self.pooling or "mean")
        if self.pooling is None:  # a frame-level head: maximum of each class over time
            real = (tokens != 0).any(-1, keepdim=True)
            logits = self.head(tokens).masked_fill(~real, -torch.inf).amax(1)
        else:
            logits = self.head(embedding)
        loss = None
        if labels is not None and labels.ndim == 1:
            loss = nn.functional.cross_entropy(logits, labels)
        elif labels is not None:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return SequenceClassifierOutput(loss=loss, logits=logits)
