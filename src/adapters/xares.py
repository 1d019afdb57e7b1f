"""An encoder as X-ARES wants it (package `xares`).

AUDIO_ENCODER=runs/quickstart python -m xares.run --max-jobs 1 src/adapters/xares.py TASKS...
"""

import os

import torch
from torch import Tensor, nn

from src import checkpoint
from src.errors import UserError


class DashengEncoder(nn.Module):
    """Args: path: anything that `load_encoder` reads; None takes it from the environment variable AUDIO_ENCODER.

    Raises:
        UserError: neither is given; as `load_encoder`.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__()
        path = path or os.environ.get("AUDIO_ENCODER")
        if not path:
            raise UserError("X-ARES gives no path to an encoder; set AUDIO_ENCODER=PATH in the environment")
        self.encoder = checkpoint.load_encoder(path)
        self.sampling_rate = self.encoder.sample_rate
        self.output_dim = self.encoder.embed_dim
        self.hop_size_in_ms = 1000.0 * self.encoder.hop_seconds

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """(B, T) or (T,) at `sampling_rate` to (B, N, output_dim); long sounds in chunks of 10.08 s."""
        self.encoder.eval()
        audio = audio[None] if audio.ndim == 1 else audio
        return self.encoder(audio.to(self.encoder.time_pos_embed.device))
