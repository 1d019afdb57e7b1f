"""Classification as a LightningModule: linear probe, fine-tuning, or the one and then the other."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)

from src.classification.augment import SpecAugment, augment
from src.classification.lora import has_adapters, merged_state
from src.config.settings import AugmentConfig, ClassifyConfig, OptimizerConfig
from src.data.labelled.datamodule import LabelledDataModule
from src.models.classifier import AudioClassifier
from src.models.initialize import initialize
from src.models.sizes import build_encoder
from src.training.module import TrainingModule
from src.training.optimizer import NO_DECAY


class AudioClassification(TrainingModule):
    """
    Args:
        model: what is trained, or the plain values that describe it (encoder's architecture, classifier's settings).
        config: method, augmentation, balance. optimizer: rates and schedule.
        class_counts: (C,) clips of each class in train, for balanced weights; None counts them alike.
        seed: of augmentation and dropout.

    Attributes:
        predictions: after a test, by place in the split: probabilities and targets, (C,), or (N, C) of tokens.
    """

    model: AudioClassifier

    def __init__(
        self,
        model: AudioClassifier | dict[str, Any],
        config: ClassifyConfig | dict[str, Any] | None = None,
        optimizer: OptimizerConfig | dict[str, Any] | None = None,
        class_counts: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        model = build_classifier(**model) if isinstance(model, dict) else model
        config = classify_config(config)
        optimizer = OptimizerConfig(**optimizer) if isinstance(optimizer, dict) else optimizer or OptimizerConfig()
        super().__init__(model, optimizer)
        counts = torch.tensor([1.0] * len(model.class_names) if class_counts is None else list(class_counts))
        self.save_hyperparameters(
            {
                "model": {"encoder": model.encoder.architecture, "classifier": model.settings},
                "config": asdict(config),
                "optimizer": asdict(optimizer),
                "class_counts": counts.tolist(),
                "seed": seed,
            }
        )
        self.config, self.seed = config, seed
        self.frames = model.pooling is None
        weights = counts.sum() / counts.clamp(min=1) / len(counts)
        self.class_weights: Tensor
        self.register_buffer(
            "class_weights", weights if config.balanced == "weights" else torch.ones_like(weights), persistent=False
        )
        self._set_up_learning()
        self.metrics = make_metrics(model.multi, len(counts))
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})
        self.predictions: dict[int, tuple[Tensor, Tensor]] = {}

    def _set_up_learning(self) -> None:
        """What is frozen, and what is masked on the way in."""
        if self.config.method == "linear":
            self.model.encoder.requires_grad_(False)
            return
        augmented = self.config.augment
        if augmented.mask_bands or augmented.mask_frames:
            masks = self.masks = SpecAugment(augmented.mask_bands, augmented.mask_frames)
            self.model.encoder.init_bn.register_forward_hook(lambda module, inputs, output: masks(output))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return layer_groups(self.model, lr, self.optimizer_config.weight_decay, self.config.layer_decay)

    def on_train_epoch_start(self) -> None:
        if self.config.method == "linear":
            self.model.encoder.eval()
        self.model.encoder.init_bn.eval()  # its statistics are those of pretraining; a small batch would spoil them

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes a step a pure function of (weights, seed, epoch, batch, rank)."""
        super().on_train_batch_start(batch, batch_idx)
        if isinstance(data := getattr(self.trainer, "datamodule", None), LabelledDataModule):
            data.progress = (self.current_epoch, batch_idx + 1)
        place = self.current_epoch * 2**32 + batch_idx * 2**16 + self.global_rank
        torch.manual_seed((self.seed * 2**44 + place) % 2**63)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        target, valid = self._truth(batch)
        if "embedding" in batch:
            logits = self.model.head(batch["embedding"])
        else:
            config = replace(self.config.augment, shift_seconds=0.0) if self.frames else self.config.augment
            waveform, length, target = augment(batch["waveform"], batch["length"], target, config)
            logits = self.model(waveform, length)
            if valid is not None:
                valid = _real(logits, self.model.encoder.num_tokens(length))
        loss = self.loss(logits, target, valid)
        self.log("train/loss", loss.detach())
        return loss

    def loss(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Cross-entropy with shares of classes, or binary cross-entropy of each class where a clip may have several.

        Args:
            logits, target: (B, C), or (B, N, C) with valid (B, N), True for real tokens.
        """
        if valid is not None:
            logits, target = logits[valid], target[valid]
        if self.model.multi:
            return binary_cross_entropy_with_logits(logits, target, pos_weight=self.class_weights)
        smoothing = self.config.label_smoothing if self.training else 0.0
        return cross_entropy(logits, target, self.class_weights, label_smoothing=smoothing)

    def _truth(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Targets (B, C); of tokens (B, N, C), and which of them are real (B, N)."""
        if not self.frames:
            return batch["target"], None
        encoder = self.model.encoder
        num_tokens = batch["num_tokens"] if "num_tokens" in batch else encoder.num_tokens(batch["length"])
        times = encoder.token_times(int(num_tokens.max())).to(num_tokens.device)
        target = frame_targets(batch["events"], times, batch["target"].shape[1])
        return target, _real(target, num_tokens)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        probability, target, valid = self._measure("test", batch)
        for row, index in enumerate(batch["index"].tolist()):
            real = slice(None) if valid is None else valid[row]
            self.predictions[index] = probability[row][real].float().cpu(), target[row][real].cpu()

    def _measure(self, part: str, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Probabilities, targets, and which tokens are real."""
        if "embedding" in batch:
            logits = self.model.head(batch["embedding"])
        else:
            logits = self.model(batch["waveform"], batch["length"])
        target, valid = self._truth(batch)
        count = len(logits) if valid is None else int(valid.sum())  # clips, or tokens
        self.losses[part].update(self.loss(logits, target, valid), weight=count)  # type: ignore[operator]
        probability = self.model.probabilities(logits)
        chance, truth = (probability, target) if valid is None else (probability[valid], target[valid])
        self.metrics.update(chance, truth.long() if self.model.multi else truth.argmax(1))
        return probability, target, valid

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")
        if dist.is_available() and dist.is_initialized():
            everywhere: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, self.predictions)
            self.predictions = {index: row for each in everywhere for index, row in each.items()}

    def _log_metrics(self, part: str) -> None:
        self.log(f"{part}/loss", self.losses[part].compute())  # type: ignore[operator]
        self.losses[part].reset()  # type: ignore[operator]
        self.log_dict({f"{part}/{name}": value for name, value in self.metrics.compute().items()})
        self.metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adapters go into the weights, so that a checkpoint is a classifier like any other; and in apart, to go on."""
        if self.config.lora_rank and has_adapters(self.model):
            checkpoint["adapters"] = {name: v for name, v in self.state_dict().items() if ".lora_" in name}
            checkpoint["state_dict"] = merged_state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "adapters" in checkpoint:
            head = {name: v for name, v in checkpoint["state_dict"].items() if name.startswith("model.head.")}
            checkpoint["state_dict"] = {**self.state_dict(), **head, **checkpoint["adapters"]}


def classify_config(config: ClassifyConfig | dict[str, Any] | None) -> ClassifyConfig:
    """From the plain values of a checkpoint, too."""
    if not isinstance(config, dict):
        return config or ClassifyConfig()
    return ClassifyConfig(**{**config, "augment": AugmentConfig(**config["augment"])})


def build_classifier(encoder: dict[str, Any], classifier: dict[str, Any]) -> AudioClassifier:
    """A network with initial weights from what `AudioViT.architecture` and `AudioClassifier.settings` said."""
    network = build_encoder(encoder).to_empty(device="cpu")
    initialize(network, 0, "encoder")
    return AudioClassifier(network, **classifier)


def frame_targets(events: Tensor, times: Tensor, num_classes: int) -> Tensor:
    """Which classes sound at which time.

    Args:
        events: (B, E, 3), onset and offset in seconds and class; rows of -1 are none. times: (N,) seconds.

    Returns:
        (B, N, C) of 0 and 1.
    """
    onset, offset, number = events.unbind(-1)
    sounding = (onset[..., None] <= times) & (times < offset[..., None])  # (B, E, N)
    classes = torch.arange(num_classes, device=events.device) == number[..., None]  # (B, E, C)
    return torch.einsum("ben,bec->bnc", sounding.float(), classes.float()).clamp(max=1.0)


def _real(tokens: Tensor, num_tokens: Tensor) -> Tensor:
    """(B, N), True for the real ones of tokens (B, N, ...)."""
    return torch.arange(tokens.shape[1], device=num_tokens.device) < num_tokens[:, None]


def make_metrics(multi: bool, num_classes: int) -> MetricCollection:
    """Single: accuracy (share of clips) and macro F1. Multi: mean average precision and macro F1."""
    if multi:
        precision = MultilabelAveragePrecision(num_classes, average="macro")
        return MetricCollection({"map": precision, "f1": MultilabelF1Score(num_classes, average="macro")})
    accuracy = MulticlassAccuracy(num_classes, average="micro")
    return MetricCollection({"accuracy": accuracy, "f1": MulticlassF1Score(num_classes, average="macro")})


def layer_groups(model: AudioClassifier, learning_rate: float, weight_decay: float, decay: float) -> list[dict]:
    """Parameter groups by name: the head learns at `learning_rate`, each block below `decay` times as fast as the next.

    Norms, biases and positions are not decayed towards 0.
    """
    depth = model.encoder.depth
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("head."):
            level = depth + 1
        elif ".blocks." in name:
            level = int(name.split(".")[2]) + 1
        else:  # positions, patch embedding, batch norm; the last norm goes with the last block
            level = depth if name.startswith("encoder.norm.") else 0
        plain = name.endswith(NO_DECAY) or parameter.ndim == 1
        group = groups.setdefault(
            (level, plain),
            {
                "params": [],
                "lr": learning_rate * decay ** (depth + 1 - level),
                "weight_decay": 0.0 if plain else weight_decay,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
