"""Encoders of other projects, scored by the same code: modules with the HEAR API, and encoder classes of X-ARES.

`--encoder my_module:weights.pt` imports `my_module` and calls `load_model("weights.pt")`; `my_module:` calls it without
a path (https://hearbenchmark.com/hear-api.html). `--encoder my_module:MyEncoder`, if that is a class, makes one: it has
`sampling_rate`, `output_dim` and `hop_size_in_ms`, and maps (B, T) to (B, N, D) (https://github.com/jimbozhang/xares).
"""

import hashlib
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import soxr
import torch
from torch import Tensor

from src.audio.decode import SAMPLE_RATE, SOXR_QUALITY
from src.data.sources.index import digest
from src.errors import UserError
from src.evaluation.embeddings import BandStatistics
from src.evaluation.frozen import Batch, Embedded, code_digest

_HEAR = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
_XARES = ("sampling_rate", "output_dim", "hop_size_in_ms")


def load_peer(text: str, device: str) -> "Peer":
    """Args: text: `module`, `module:path` or `module:Class`.

    Raises:
        UserError: no such module, what the API needs is missing, the model is no `torch.nn.Module`.
    """
    module_name, _, path = text.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"--encoder {text}: the module {module_name} can't be imported ({error})") from None
    found = getattr(module, path, None)
    return XaresPeer(text, module, found, device) if isinstance(found, type) else HearPeer(text, module, path, device)


class Peer:
    """A model of another project. Only clips of the same length are batched, as these APIs have no lengths."""

    floor, calibrated, parallel = False, False, False

    def __init__(self, text: str, module: ModuleType, model: torch.nn.Module, sample_rate: float, device: str) -> None:
        self.name, self.model = text, model.to(device).eval()
        self._sample_rate, self._device = int(sample_rate), device
        hashed = hashlib.sha256(Path(inspect.getfile(module)).read_bytes())
        for name, value in model.state_dict().items():
            hashed.update(name.encode())
            hashed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest([text, hashed.hexdigest(), code_digest()])

    def scenes(self, audio: Tensor) -> Tensor:
        """(B, T) -> (B, D)."""
        raise NotImplementedError

    def frames(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> (B, N, D) and their times (B, N) in ms."""
        raise NotImplementedError

    def views(self, timestamps: bool) -> list[str]:
        return ["timestamp embeddings" if timestamps else "scene embeddings"]

    def calibrate(self, statistics: BandStatistics) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def embed(self, batch: Batch, views: Sequence[str], timestamps: bool) -> dict[str, Embedded]:
        rate, waveforms = self._sample_rate, batch.waveforms
        if rate != SAMPLE_RATE:
            waveforms = [soxr.resample(each, SAMPLE_RATE, rate, quality=SOXR_QUALITY) for each in waveforms]
        rows: dict[int, np.ndarray] = {}
        times: dict[int, np.ndarray] = {}
        for alike in _equal_lengths([len(each) for each in waveforms]):
            audio = torch.from_numpy(np.stack([waveforms[i] for i in alike])).to(self._device)
            if timestamps:
                embeddings, stamps = self.frames(audio)
                times.update(zip(alike, stamps.double().cpu().numpy(), strict=True))
            else:
                embeddings = self.scenes(audio)[:, None]
            rows.update(zip(alike, embeddings.float().cpu().numpy(), strict=True))
        ordered = [rows[i] for i in range(len(waveforms))]
        stamps_ms = np.concatenate([times[i] for i in range(len(waveforms))]) if timestamps else None
        return {views[0]: Embedded(np.concatenate(ordered), np.array([len(each) for each in ordered]), stamps_ms)}


class HearPeer(Peer):
    """A module with the HEAR API: `load_model`, `get_scene_embeddings`, `get_timestamp_embeddings`."""

    def __init__(self, text: str, module: ModuleType, path: str, device: str) -> None:
        if lacking := [name for name in _HEAR if not hasattr(module, name)]:
            raise UserError(f"--encoder {text}: the module has no {lacking[0]}; the HEAR API needs {', '.join(_HEAR)}")
        model = module.load_model(path) if path else module.load_model()
        if not isinstance(model, torch.nn.Module) or not hasattr(model, "sample_rate"):
            raise UserError(f"--encoder {text}: load_model must return a torch.nn.Module with a sample_rate")
        super().__init__(text, module, model, model.sample_rate, device)  # type: ignore[arg-type]
        self._module = module

    def scenes(self, audio: Tensor) -> Tensor:
        return self._module.get_scene_embeddings(audio, self.model)

    def frames(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        return self._module.get_timestamp_embeddings(audio, self.model)


class XaresPeer(Peer):
    """The embedding of a clip is the mean of its frames, as in X-ARES; the time of a frame is its center."""

    def __init__(self, text: str, module: ModuleType, kind: type, device: str) -> None:
        try:
            inspect.signature(kind).bind()
        except TypeError as error:
            raise UserError(f"--encoder {text}: X-ARES makes encoders without arguments, this one: {error}") from None
        model = kind()
        lacking = [name for name in _XARES if not hasattr(model, name)]
        if not isinstance(model, torch.nn.Module) or lacking:
            raise UserError(f"--encoder {text}: X-ARES needs a torch.nn.Module that has {', '.join(_XARES)}")
        super().__init__(text, module, model, model.sampling_rate, device)  # type: ignore[arg-type]

    def scenes(self, audio: Tensor) -> Tensor:
        return self.frames(audio)[0].mean(1)

    def frames(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.model(audio)
        if rows.ndim != 3 or len(rows) != len(audio) or rows.shape[2] != self.model.output_dim:
            raise UserError(
                f"--encoder {self.name}: {tuple(audio.shape)} samples gave {tuple(rows.shape)}; X-ARES needs "
                f"({len(audio)}, frames, {self.model.output_dim})"
            )
        times = float(self.model.hop_size_in_ms) * (torch.arange(rows.shape[1]) + 0.5)  # type: ignore[arg-type]
        return rows, times.expand(len(rows), -1)


def _equal_lengths(lengths: list[int]) -> list[list[int]]:
    """Groups of clips of the same length."""
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(length, []).append(i)
    return list(groups.values())
