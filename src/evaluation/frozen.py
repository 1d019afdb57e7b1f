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
from src.models.vit import AudioViT, Pooling, pool


class Embedded(NamedTuple):
    """rows: (R, D) fp32. counts: (n,) rows of each clip, 1 in scene tasks. times_ms: (R,) in timestamp tasks."""

    rows: np.ndarray
    counts: np.ndarray
    times_ms: np.ndarray | None = None


class Frozen(Protocol):
    """An encoder to be scored.

    Attributes:
        name: in the table. fingerprint: hash of the weights and of the code that uses them. floor: whether it is one.
        calibrated: whether `calibrate` has to be called with clips of the task before `embed`.
    """

    name: str
    fingerprint: str
    floor: bool
    calibrated: bool

    def views(self, timestamps: bool) -> list[str]: ...

    def calibrate(self, waveforms: list[np.ndarray]) -> None: ...

    def embed(self, waveforms: list[np.ndarray], views: Sequence[str], timestamps: bool) -> dict[str, Embedded]: ...


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
        batch_seconds: float = 30.0,
    ) -> None:
        self.name, self.encoder, self.batch_seconds = name, encoder.eval(), batch_seconds
        self._layers = {text: embeddings.parse_layers(text.split("+"), encoder.depth) for text in layers}
        self._poolings = poolings
        self.fingerprint = digest([embeddings.fingerprint(encoder), code_digest()])

    def views(self, timestamps: bool) -> list[str]:
        if timestamps:
            return list(self._layers)
        return [f"{layers} {pooling}" for layers in self._layers for pooling in self._poolings]

    def calibrate(self, waveforms: list[np.ndarray]) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def embed(self, waveforms: list[np.ndarray], views: Sequence[str], timestamps: bool) -> dict[str, Embedded]:
        parts = {view: view.split(" ") for view in views}
        wanted = sorted({each for text, *_ in parts.values() for each in self._layers[text]}, key=str)
        found: dict[str, dict[int, np.ndarray]] = {view: {} for view in views}
        for chosen, tokens, counts in embeddings.token_batches(self.encoder, waveforms, wanted, self.batch_seconds):
            for view, (text, *rest) in parts.items():
                columns = _columns([wanted.index(each) for each in self._layers[text]], self.encoder.embed_dim)
                selected = tokens if len(columns) == tokens.shape[-1] else tokens[..., columns]
                if timestamps:
                    rows = selected.float().cpu().numpy()
                    found[view].update({i: rows[k, : int(counts[k])] for k, i in enumerate(chosen)})
                else:
                    pooled = pool(selected, counts, rest[0]).float().cpu().numpy()  # type: ignore[arg-type]
                    found[view].update({i: pooled[k : k + 1] for k, i in enumerate(chosen)})
        return {view: self._collect(rows, timestamps) for view, rows in found.items()}

    def _collect(self, rows: dict[int, np.ndarray], timestamps: bool) -> Embedded:
        ordered = [rows[i] for i in range(len(rows))]
        counts = np.array([len(each) for each in ordered])
        times = [1000.0 * self.encoder.token_times(int(n)).double().numpy() for n in counts] if timestamps else None
        return Embedded(np.concatenate(ordered), counts, None if times is None else np.concatenate(times))


def code_digest() -> str:
    """Hash of the source files of this project that turn audio into embeddings."""
    files = [file for package in (src.audio, src.models) for file in sorted(Path(package.__path__[0]).glob("*.py"))]
    return digest([file.read_text(encoding="utf-8") for file in [*files, Path(embeddings.__file__), Path(__file__)]])


def _columns(numbers: list[int], width: int) -> list[int]:
    return [column for number in numbers for column in range(number * width, (number + 1) * width)]
