"""Frozen encoders as the evaluation sees them: waveforms in, one embedding per clip or per token out.

A view is one way to read an encoder: layers (joined by `+`) and a pooling, such as `last mean` or `6+last mean_std`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import src.audio
import src.models
from src.errors import UserError
from src.evaluation.embeddings import token_batches
from src.models.long_clips import encode_long_clip
from src.models.vit import AudioViT, Layer, Pooling, pool

LONG_SECONDS = 60.0  # longer clips go through the encoder in chunks


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
        self._layers = {text: parse_layers(text, encoder.depth) for text in layers}
        self._poolings = poolings
        self.fingerprint = weights_digest(encoder)

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
        for chosen, tokens, counts in self._tokens(waveforms, wanted):
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

    def _tokens(self, waveforms: list[np.ndarray], layers: list[Layer]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Batches: indices of the clips, tokens (B, N, D x layers), real tokens of each (B,)."""
        most = LONG_SECONDS * self.encoder.sample_rate
        short = [i for i, waveform in enumerate(waveforms) if len(waveform) <= most]
        for chosen, tokens, counts in token_batches(
            self.encoder, [waveforms[i] for i in short], layers, self.batch_seconds
        ):
            yield [short[k] for k in chosen], tokens, counts
        for i in sorted(set(range(len(waveforms))) - set(short)):
            chunks = encode_long_clip(self.encoder, partial(_one_block, waveforms[i]), layers)
            tokens = torch.cat(list(chunks))[None]
            yield [i], tokens, torch.tensor([tokens.shape[1]], device=tokens.device)

    def _collect(self, rows: dict[int, np.ndarray], timestamps: bool) -> Embedded:
        ordered = [rows[i] for i in range(len(rows))]
        counts = np.array([len(each) for each in ordered])
        times = [1000.0 * self.encoder.token_times(int(n)).double().numpy() for n in counts] if timestamps else None
        return Embedded(np.concatenate(ordered), counts, None if times is None else np.concatenate(times))


def parse_layers(text: str, depth: int) -> list[Layer]:
    """`6+last` to [6, None].

    Raises:
        UserError: no such block in this encoder.
    """
    layers: list[Layer] = []
    for word in text.split("+"):
        if word != "last" and not (word.isdigit() and int(word) <= depth):
            raise UserError(f"--layers {text}: {word} is not a block; use 0 (the patch embedding) to {depth}, or last")
        layers.append(None if word == "last" else int(word))
    return layers


def weights_digest(module: nn.Module) -> str:
    """Hash of all weights, and of the source files of this project that turn audio into embeddings."""
    hashed = hashlib.sha256()
    for package in (src.audio, src.models):
        for file in sorted(Path(package.__path__[0]).glob("*.py")):
            hashed.update(file.read_bytes())
    hashed.update(Path(__file__).read_bytes())
    for name, value in module.state_dict().items():
        hashed.update(name.encode())
        hashed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:32]


def _one_block(waveform: np.ndarray) -> list[np.ndarray]:
    return [waveform]


def _columns(numbers: list[int], width: int) -> list[int]:
    return [column for number in numbers for column in range(number * width, (number + 1) * width)]
