"""Encoders behind the HEAR API (https://hearbenchmark.com/hear-api.html), so that peers are scored by the same code.

`--encoder my_module:weights.pt` imports `my_module` and calls `load_model("weights.pt")`; `my_module:` calls it without
a path.
"""

import hashlib
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
import torch

from src.audio.decode import SAMPLE_RATE
from src.data.sources.index import digest
from src.errors import UserError
from src.evaluation.embeddings import BandStatistics
from src.evaluation.frozen import Batch, Embedded, code_digest

_FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")


class HearModule:
    """Args: text: `module` or `module:path`.

    Clips are batched only with clips of the same length, as the API has no lengths.

    Raises:
        UserError: no such module, a function or attribute of the API is missing, the model is no `torch.nn.Module`.
    """

    floor, calibrated, parallel = False, False, False

    def __init__(self, text: str, device: str) -> None:
        self.name = text
        module_name, _, path = text.partition(":")
        try:
            self._module = importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(f"--encoder {text}: the module {module_name} can't be imported ({error})") from None
        if lacking := [name for name in _FUNCTIONS if not hasattr(self._module, name)]:
            raise UserError(
                f"--encoder {text}: the module has no {lacking[0]}; the HEAR API needs {', '.join(_FUNCTIONS)}"
            )
        model = self._module.load_model(path) if path else self._module.load_model()
        if not isinstance(model, torch.nn.Module) or not hasattr(model, "sample_rate"):
            raise UserError(f"--encoder {text}: load_model must return a torch.nn.Module with a sample_rate")
        self._model, self._device = model.to(device).eval(), device
        self._sample_rate = int(model.sample_rate)  # type: ignore[arg-type]
        hashed = hashlib.sha256(Path(inspect.getfile(self._module)).read_bytes())
        for name, value in model.state_dict().items():
            hashed.update(name.encode())
            hashed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest([text, hashed.hexdigest(), code_digest()])

    def views(self, timestamps: bool) -> list[str]:
        return ["timestamp embeddings" if timestamps else "scene embeddings"]

    def calibrate(self, statistics: BandStatistics) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def embed(self, batch: Batch, views: Sequence[str], timestamps: bool) -> dict[str, Embedded]:
        rate, waveforms = self._sample_rate, batch.waveforms
        if rate != SAMPLE_RATE:
            waveforms = [soxr.resample(each, SAMPLE_RATE, rate, quality="HQ") for each in waveforms]
        rows: dict[int, np.ndarray] = {}
        times: dict[int, np.ndarray] = {}
        for alike in _equal_lengths([len(each) for each in waveforms]):
            audio = torch.from_numpy(np.stack([waveforms[i] for i in alike])).to(self._device)
            if timestamps:
                embeddings, stamps = self._module.get_timestamp_embeddings(audio, self._model)
                times.update(zip(alike, stamps.double().cpu().numpy(), strict=True))
            else:
                embeddings = self._module.get_scene_embeddings(audio, self._model)[:, None]
            rows.update(zip(alike, embeddings.float().cpu().numpy(), strict=True))
        ordered = [rows[i] for i in range(len(waveforms))]
        stamps_ms = np.concatenate([times[i] for i in range(len(waveforms))]) if timestamps else None
        return {views[0]: Embedded(np.concatenate(ordered), np.array([len(each) for each in ordered]), stamps_ms)}


def _equal_lengths(lengths: list[int]) -> list[list[int]]:
    """Groups of clips of the same length."""
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(length, []).append(i)
    return list(groups.values())
