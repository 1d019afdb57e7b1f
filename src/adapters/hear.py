"""The HEAR 2021 API (https://hearbenchmark.com/hear-api.html); pass this module to `heareval`.

python -m heareval.embeddings.runner src.adapters.hear --model runs/quickstart --tasks-dir TASKS
"""

import torch
from torch import Tensor, nn

from src.encoders.load import load_encoder
from src.models.vit import AudioViT

_BATCH_SECONDS = 120.0  # audio per batch


class HearModel(nn.Module):
    """An encoder with the attributes that the API requires."""

    def __init__(self, encoder: AudioViT) -> None:
        super().__init__()
        self.encoder = encoder
        self.sample_rate = encoder.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = encoder.embed_dim


def load_model(model_file_path: str) -> HearModel:
    """Load the model. model_file_path: anything that `load_encoder` accepts."""
    return HearModel(load_encoder(model_file_path)).eval()


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Tokens of each sound and their centers in time.

    Args:
        audio: (n_sounds, n_samples) at 16 kHz in [-1, 1].

    Returns:
        (n_sounds, n_timestamps, D), and (n_sounds, n_timestamps) in milliseconds: 15, 55, 95, ...

    Raises:
        ValueError: `audio` is not 2-D or is empty.
    """
    tokens = torch.cat([model.encoder(batch) for batch in _batches(audio, model)])
    times = 1000.0 * model.encoder.token_times(tokens.shape[1]).to(tokens.device)
    return tokens, times.expand(len(tokens), -1).clone()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Mean of each sound's tokens, (n_sounds, D). Arguments and errors as `get_timestamp_embeddings`."""
    return torch.cat([model.encoder.embed(batch) for batch in _batches(audio, model)])


def _batches(audio: Tensor, model: HearModel) -> tuple[Tensor, ...]:
    """Batches of sounds on the model's device; a sound's embedding does not depend on its batch."""
    if audio.ndim != 2 or not audio.numel():
        raise ValueError(f"audio has shape {tuple(audio.shape)}; it has to be (n_sounds, n_samples), neither of them 0")
    model.eval()
    row_samples = max(audio.shape[1], model.encoder.log_mel.min_samples)  # shorter sounds are padded to this
    batch_size = max(1, int(_BATCH_SECONDS * model.sample_rate) // row_samples)
    return audio.to(model.encoder.time_pos_embed.device).split(batch_size)
