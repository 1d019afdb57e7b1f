"""Frozen encoders as the evaluation sees them: waveforms in, one embedding per clip or per token out.

A view is one way to read an encoder: layers (joined by `+`) and a pooling, such as `last mean` or `6+last mean_std`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

import src.audio
import src.models
from src.data.sources.index import digest
from src.evaluation import embeddings
from src.evaluation.embeddings import BandStatistics
from src.models.log_mel import LogMel
from src.models.long_clips import LONG_SECONDS, encode_clips
from src.models.vit import AudioViT, Pooling, pool


class Embedded(NamedTuple):
    """rows: (R, D) fp32. counts: (n,) rows of each clip, 1 in scene tasks. times_ms: (R,) in timestamp tasks."""

    rows: np.ndarray
    counts: np.ndarray
    times_ms: np.ndarray | None = None


class Batch:
    """Clips that are embedded together. Their log-mels are computed once for all encoders of the same front end.

    Args:
        waveforms: (T,) each, at 16 kHz.
    """

    def __init__(self, waveforms: list[np.ndarray]) -> None:
        self.waveforms, self.lengths = waveforms, [len(each) for each in waveforms]
        self._padded: dict[torch.device, torch.Tensor] = {}
        self._log_mels: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def padded(self, device: torch.device) -> torch.Tensor:
        """(B, T), zero beyond the `lengths`."""
        if device not in self._padded:
            self._padded[device] = embeddings.pad(self.waveforms).to(device)
        return self._padded[device]

    def log_mel(self, front_end: LogMel) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `front_end` returns for the clips."""
        device = front_end.window.device
        key = f"{front_end.settings} {front_end.min_samples} {device}"
        if key not in self._log_mels:
            self._log_mels[key] = front_end(self.padded(device), self.lengths)
        return self._log_mels[key]


class Frozen(Protocol):
    """An encoder to be scored.

    Attributes:
        name: in the table. fingerprint: hash of the weights and of the code that uses them. floor: whether it is one.
        calibrated: whether `calibrate` has to be called with the statistics of the task before `embed`.
        parallel: whether threads with a core each may embed batches at the same time.
    """

    name: str
    fingerprint: str
    floor: bool
    calibrated: bool

    @property
    def parallel(self) -> bool: ...

    def views(self, timestamps: bool) -> list[str]: ...

    def calibrate(self, statistics: BandStatistics) -> None: ...

    def embed(self, batch: Batch, views: Sequence[str], timestamps: bool) -> dict[str, Embedded]: ...


class FrozenViT:
    """Any encoder that `load_encoder` reads.

    Args:
        layers: candidates, such as ["6", "last", "6+last"]. poolings: candidates; timestamp tasks have none.
    """

    floor, calibrated = False, False

    def __init__(
        self,
        name: str,
        encoder: AudioViT,
        layers: Sequence[str] = ("last",),
        poolings: Sequence[Pooling] = ("mean",),
    ) -> None:
        self.name, self.encoder = name, encoder.eval()
        self._layers = {text: embeddings.parse_layers(text.split("+"), encoder.depth) for text in layers}
        self._poolings = poolings
        self.fingerprint = digest([embeddings.fingerprint(encoder), code_digest()])

    @property
    def parallel(self) -> bool:
        return self._device.type == "cpu"

    @property
    def _device(self) -> torch.device:
        return self.encoder.time_pos_embed.device

    def views(self, timestamps: bool) -> list[str]:
        if timestamps:
            return list(self._layers)
        return [f"{layers} {pooling}" for layers in self._layers for pooling in self._poolings]

    def calibrate(self, statistics: BandStatistics) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def embed(self, batch: Batch, views: Sequence[str], timestamps: bool) -> dict[str, Embedded]:
        parts = {view: view.split(" ") for view in views}
        wanted = sorted({each for text, *_ in parts.values() for each in self._layers[text]}, key=str)
        length = torch.tensor(batch.lengths, device=self._device)
        if max(batch.lengths) > LONG_SECONDS * self.encoder.sample_rate:
            tokens = encode_clips(self.encoder, batch.padded(self._device), length, wanted)
        else:
            tokens = self.encoder.encode_mel(*batch.log_mel(self.encoder.log_mel), wanted)
        counts, found = self.encoder.num_tokens(length), {}
        for view, (text, *rest) in parts.items():
            columns = _columns([wanted.index(each) for each in self._layers[text]], self.encoder.embed_dim)
            selected = tokens if len(columns) == tokens.shape[-1] else tokens[..., columns]
            if timestamps:
                found[view] = self._frames(selected.float().cpu().numpy(), counts.tolist())
            else:
                pooled = pool(selected, counts, rest[0]).float().cpu().numpy()  # type: ignore[arg-type]
                found[view] = Embedded(pooled, np.ones(len(pooled), int))
        return found

    def _frames(self, tokens: np.ndarray, counts: list[int]) -> Embedded:
        rows = np.concatenate([each[:count] for each, count in zip(tokens, counts, strict=True)])
        times = [1000.0 * self.encoder.token_times(count).double().numpy() for count in counts]
        return Embedded(rows, np.array(counts), np.concatenate(times))


def code_digest() -> str:
    """Hash of the source files of this project that turn audio into embeddings."""
    files = [file for package in (src.audio, src.models) for file in sorted(Path(package.__path__[0]).glob("*.py"))]
    own = ("embeddings", "frozen", "peers", "store", "untrained")
    files += [Path(__file__).with_name(f"{name}.py") for name in own]
    return digest([file.read_text(encoding="utf-8") for file in files])


def _columns(numbers: list[int], width: int) -> list[int]:
    return [column for number in numbers for column in range(number * width, (number + 1) * width)]
