"""Small labelled sets, decoded into memory, for the probes during a run."""

import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np

from src.audio.decode import AudioError
from src.audio.levels import oddity, warn_of_oddities
from src.config.settings import SourceConfig
from src.data.sources.open import open_source
from src.data.sources.source import Source
from src.errors import UserError

LONGEST_SECONDS = 10.08  # of a clip; the rest is ignored


@dataclass(frozen=True)
class ProbeClips:
    """waveforms: (T,) each, 16 kHz. labels: (n,) indices into class_names."""

    waveforms: list[np.ndarray]
    labels: np.ndarray
    class_names: list[str]


def load_probe_clips(
    train: SourceConfig, test: SourceConfig, max_clips: int, seed: int = 0
) -> tuple[ProbeClips, ProbeClips]:
    """The readable, labeled clips of two sources, up to 10.08 s of each clip, with one numbering of their classes.

    At most `max_clips` of each, sampled in proportion to the classes, fixed by `seed`.

    Raises:
        UserError: as `open_source`; no labels; fewer than two classes in one of them.
    """
    sources = [_labelled_source(config) for config in (train, test)]
    class_names = list(sources[0].class_names)
    class_names += [name for name in sources[1].class_names if name not in class_names]
    pair = [_load(source, class_names, max_clips, seed) for source in sources]
    both = zip((train, test), pair, strict=True)
    for config, clips in both:
        if len(set(clips.labels.tolist())) < 2:
            raise UserError(
                f"{config.path} has clips of {len(set(clips.labels.tolist()))} class; a probe needs two or more classes"
            )
    if untrained := set(pair[1].labels.tolist()) - set(pair[0].labels.tolist()):
        named = ", ".join(class_names[label] for label in sorted(untrained))
        warnings.warn(f"check.train has no clip of {named}, which check.test has: never predicted", stacklevel=2)
    return pair[0], pair[1]


def _labelled_source(config: SourceConfig) -> Source:
    source = open_source(config)
    if not source.class_names:
        raise UserError(
            f"{config.path} has no labels; set label_column to the column that holds them, add class folders or a "
            "labels.csv to a folder, or in shards a .cls or .json (label) beside each clip"
        )
    return source


def _load(source: Source, class_names: list[str], max_clips: int, seed: int) -> ProbeClips:
    """labels: indices into the given names."""
    number = np.array([class_names.index(name) for name in source.class_names])
    labels = np.array([source.label(i) for i in range(len(source))], dtype=int)
    labels = np.where(labels >= 0, number[labels], -1)
    labelled = np.flatnonzero(labels >= 0)
    waveforms, kept, bad, odd = [], [], list(source.bad_paths), list[tuple[str, str]]()
    for i in labelled[stratified(labels[labelled], max_clips, seed)].tolist():
        try:
            waveforms.append(source.waveform(i, 0.0, LONGEST_SECONDS))
        except AudioError as error:
            bad.append((source.path(i), str(error)))
            continue
        kept.append(labels[i])
        if what := oddity(waveforms[-1], partial(source.read, i)):
            odd.append((source.path(i), what))
    warn_of_oddities(odd)
    if bad:
        warnings.warn(
            f"{len(bad)} clips cannot be read and are left out of the probes, such as {bad[0][0]}: {bad[0][1]}",
            stacklevel=2,
        )
    return ProbeClips(waveforms, np.array(kept, dtype=int), class_names)


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
