"""An encoder for X-ARES (package `xares`).

AUDIO_ENCODER=runs/quickstart python -m xares.run --max-jobs 0 src/adapters/xares.py TASKS/esc50_task.py

Run it from the root of this repository. TASKS: a copy of X-ARES's `src/tasks` outside any folder named `src`, which is
our package. X-ARES caches embeddings and scores under `env/` by the class name below: remove `env/*/embeddings` and
`env/*/checkpoints` before evaluating another encoder.
"""

import os

import torch
from torch import Tensor, nn

from src.encoders.load import load_encoder
from src.errors import UserError
from src.models.long_clips import encode_long_clip

_BATCH_SECONDS = 120.0  # audio per batch; a longer sound is encoded in chunks


class DashengEncoder(nn.Module):
    """Args: path: anything that `load_encoder` accepts; None uses the environment variable AUDIO_ENCODER.

    Raises:
        UserError: neither is given; as `load_encoder`.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__()
        path = path or os.environ.get("AUDIO_ENCODER")
        if not path:
            raise UserError("no encoder is given; set AUDIO_ENCODER=PATH in the environment")
        self.encoder = load_encoder(path)
        self.sampling_rate = self.encoder.sample_rate
        self.output_dim = self.encoder.embed_dim
        self.hop_size_in_ms = 1000.0 * self.encoder.hop_seconds

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Tokens of each sound. Memory, except for the output, does not grow with the number or length of sounds.

        Args:
            audio: (B, T) or (T,) at `sampling_rate`, in [-1, 1].

        Returns:
            (B, N, output_dim), fp32, on the encoder's device.

        Raises:
            ValueError: `audio` is neither 1-D nor 2-D, or is empty.
        """
        if audio.ndim not in (1, 2) or not audio.numel():
            raise ValueError(f"audio has shape {tuple(audio.shape)}; it has to be (B, T) or (T,) and not empty")
        self.encoder.eval()
        audio = torch.atleast_2d(audio)
        row_samples = max(audio.shape[1], self.encoder.log_mel.min_samples)
        batch_size = int(_BATCH_SECONDS * self.sampling_rate) // row_samples
        if batch_size == 0:
            return torch.stack([self._long_sound(row) for row in audio])
        device = self.encoder.time_pos_embed.device
        return torch.cat([self.encoder(part.to(device)) for part in audio.split(batch_size)])

    def _long_sound(self, waveform: Tensor) -> Tensor:
        """(T,) -> (N, output_dim)."""
        blocks = [block.numpy() for block in waveform.detach().cpu().float().split(10 * self.sampling_rate)]
        return torch.cat(list(encode_long_clip(self.encoder, lambda: blocks)))
