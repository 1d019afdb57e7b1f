"""Small labelled sets, decoded into memory, for the probes during a run."""

import warnings
from dataclasses import dataclass

import numpy as np

from src.audio.decode import AudioError
from src.config.settings import SourceConfig
from src.data.sources.open import open_source
from src.errors import UserError

LONGEST_SECONDS = 10.08  # of a clip; the rest is ignored


@dataclass(frozen=True)
class ProbeClips:
    """waveforms: (T,) each, 16 kHz. labels: (n,) indices into class_names."""

    waveforms: list[np.ndarray]
    labels: np.ndarray
    class_names: list[str]


def load_probe_clips(config: SourceConfig, max_clips: int, seed: int = 0) -> ProbeClips:
    """The readable, labeled clips of a source, up to 10.08 s of each.

    At most `max_clips`, sampled in proportion to the classes, fixed by `seed`.

    Raises:
        UserError: as `open_source`; no labels; fewer than two classes.
    """
    source = open_source(config)
    if not source.class_names:
        raise UserError(f"{config.path} has no labels; set label_column to the column that holds them")
    labels = np.array([source.label(i) for i in range(len(source))])
    labelled = np.flatnonzero(labels >= 0)
    waveforms, kept, bad = [], [], list(source.bad_paths)
    for i in labelled[stratified(labels[labelled], max_clips, seed)].tolist():
        try:
            waveforms.append(source.waveform(i, 0.0, LONGEST_SECONDS))
            kept.append(labels[i])
        except AudioError as error:
            bad.append((source.path(i), str(error)))
    if bad:
        warnings.warn(
            f"{len(bad)} clips of {config.path} cannot be read and are left out of the probes, such as "
            f"{bad[0][0]}: {bad[0][1]}",
            stacklevel=2,
        )
    if len(set(kept)) < 2:
        raise UserError(f"{config.path} has clips of {len(set(kept))} class; a probe needs two or more classes")
    return ProbeClips(waveforms, np.array(kept), list(source.class_names))


def stratified(labels: np.ndarray, most: int, seed: int) -> list[int]:
    """Up to `most` indices, ascending, with the class proportions of `labels`."""
    if len(labels) <= most:
        return list(range(len(labels)))
    random = np.random.default_rng(seed)
    quantile = np.empty(len(labels))  # of a clip within its shuffled class, 0 to 1
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        quantile[random.permutation(rows)] = (np.arange(len(rows)) + 0.5) / len(rows)
    return sorted(np.argsort(quantile, kind="stable")[:most].tolist())
