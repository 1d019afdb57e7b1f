"""Floors that are in each table: mel statistics, an untrained patch projection, untrained encoders.

`mel` is the mean and deviation over time of each log-mel band. `random-patches` is the mean and deviation over time of
a random linear projection of mel patches, without a network. `random-encoder` is the tiny encoder before training. The
batch norm of the latter two gets the statistics of the task's clips; without them, their input is raw dB.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch

from src.evaluation.embeddings import BandStatistics, mel_statistics, parse_layers, set_norm
from src.evaluation.frozen import Batch, Embedded, Frozen, FrozenViT, code_digest
from src.models.initialize import initialize
from src.models.sizes import create_encoder
from src.models.vit import AudioViT, Pooling

SEEDS = (0, 1, 2)  # of the untrained encoders
_PATCH_WIDTH = 768


class MelStatistics:
    """In timestamp tasks: mean and deviation over the four frames of each 40 ms token."""

    name, floor, calibrated, parallel = "mel", True, False, True

    def __init__(self) -> None:
        self._frames = AudioViT(64, 0, 1)
        self.fingerprint = code_digest()

    def views(self, timestamps: bool) -> list[str]:
        return ["mean + deviation"]

    def calibrate(self, statistics: BandStatistics) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def embed(self, batch: Batch, views: Sequence[str], timestamps: bool) -> dict[str, Embedded]:
        if not timestamps:
            return {views[0]: Embedded(mel_statistics(batch.waveforms), np.ones(len(batch.waveforms), int))}
        rows = []
        for waveform in batch.waveforms:
            bands, _ = self._frames.log_mel(torch.from_numpy(waveform)[None])  # (1, 64, F)
            patches = self._frames.patch_embed.patchify(bands)[0].unflatten(1, (64, -1))  # (N, 64, 4)
            rows.append(torch.cat([patches.mean(2), patches.std(2, correction=0)], 1).numpy())
        times = [1000.0 * self._frames.token_times(len(each)).double().numpy() for each in rows]
        counts = np.array([len(each) for each in rows])
        return {views[0]: Embedded(np.concatenate(rows), counts, np.concatenate(times))}


class Untrained(FrozenViT):
    """An encoder with initial weights and the batch-norm statistics of the task's clips."""

    floor, calibrated = True, True

    def calibrate(self, statistics: BandStatistics) -> None:
        set_norm(self.encoder, statistics)


def random_patches() -> Untrained:
    encoder = AudioViT(_PATCH_WIDTH, 0, 1)
    initialize(encoder, 0, "encoder")
    torch.nn.init.zeros_(encoder.time_pos_embed)
    torch.nn.init.zeros_(encoder.freq_pos_embed)
    return Untrained("random-patches", encoder, ["0"], ["mean_std"])


def random_encoder(seed: int, layers: Sequence[str], poolings: Sequence[Pooling]) -> Untrained:
    """Reads the `layers` that the tiny encoder has, or its last one. Raises UserError: a layer that is no number."""
    encoder = create_encoder("tiny", seed=seed)
    numbers = {text: parse_layers(text.split("+"), sys.maxsize) for text in layers}
    known = [text for text in layers if all((number or 0) <= encoder.depth for number in numbers[text])]
    return Untrained(f"random-encoder {seed}", encoder, known or ["last"], poolings)


def floors(layers: Sequence[str], poolings: Sequence[Pooling], device: str = "cpu") -> list[Frozen]:
    untrained = [random_patches(), *(random_encoder(seed, layers, poolings) for seed in SEEDS)]
    for each in untrained:
        each.encoder.to(device)
    return [MelStatistics(), *untrained]
