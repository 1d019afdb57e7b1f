"""Classes of new audio by a trained classifier, into CSV: a row a clip, pieces of long ones, or events with times."""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from src.audio.decode import AudioError
from src.classification.report import write_predictions
from src.config.settings import Config
from src.data.sources.open import open_source
from src.data.sources.source import Source
from src.encoders.load import load_classifier
from src.errors import UserError
from src.evaluation.events import find_events
from src.models.classifier import AudioClassifier
from src.training.run_folder import checkpoint_of, later_starts, run_of

log = logging.getLogger("src")
_PIECE_SECONDS = 10.0  # of a long file


@torch.no_grad()
def predict(config: Config, checkpoint: str | None) -> int:
    """Classes of `data.test` into predictions-new.csv in the run's folder; exit status 1 if some could not be read.

    The run is the one that the settings name, and its best checkpoint; of a cross-validated run the mean of its folds'
    probabilities.
    """
    paths = find_classifiers(config, checkpoint)
    if config.data.test is None:
        raise UserError("data.test is not set; predict needs it, for example data.test.path=FOLDER")
    models = [load_classifier(path) for path in paths]
    source = open_source(config.data.test)
    bad = list(source.bad_paths)
    target = run_of(paths[0]) / "predictions-new.csv"
    log.info("checkpoint: %s", paths[0] if len(paths) == 1 else f"the mean of {len(paths)} folds, {paths[0]} and so on")
    write = _events if models[0].pooling is None else _classes
    rows = write(models, source, target, bad)
    log.info("%d rows: %s", rows, target)
    for name, reason in bad:
        log.info("skipped %s: %s", name, reason)
    return 1 if bad else 0


def find_classifiers(config: Config, checkpoint: str | None) -> list[Path]:
    """Checkpoints that answer together: one, or one of each fold.

    Raises:
        UserError: there is none.
    """
    assert config.classify is not None
    if later := later_starts(config.runs_folder, config.name):
        log.info("note: %s is a later start; --checkpoint %s takes it", later[-1], later[-1])
    place = Path(checkpoint) if checkpoint not in (None, "best", "last") else Path(config.runs_folder, config.name)
    if folds := sorted(place.glob("fold-*")):
        wanted = checkpoint if checkpoint in ("best", "last") else None
        return [checkpoint_of(str(fold.parent), fold.name, wanted) for fold in folds]
    return [checkpoint_of(config.runs_folder, config.name, checkpoint)]


def probabilities(models: Sequence[AudioClassifier], waveform: torch.Tensor) -> np.ndarray:
    """(1, T) to (C,), or (N, C) of tokens: the mean of all models."""
    return np.mean([model.probabilities(model(waveform))[0].numpy() for model in models], axis=0)


def _classes(models: list[AudioClassifier], source: Source, file: Path, bad: list[tuple[str, str]]) -> int:
    """A row each 10 s."""
    places: list[tuple[str, float]] = []
    found = []
    for i, start, waveform in _pieces(source, bad):
        found.append(probabilities(models, waveform))
        places.append((source.path(i), start))
    write_predictions(file, places, np.array(found), models[0].class_names)
    return len(places)


def _events(models: list[AudioClassifier], source: Source, file: Path, bad: list[tuple[str, str]]) -> int:
    """A row an event: path, onset and offset in seconds, label, mean probability."""
    rows = 0
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("path", "onset", "offset", "label", "probability"))
        by_clip: dict[int, list[np.ndarray]] = {}
        for i, _, waveform in _pieces(source, bad):
            by_clip.setdefault(i, []).append(probabilities(models, waveform))
        for i, pieces in by_clip.items():
            hop, names = models[0].encoder.hop_seconds, models[0].class_names
            for event in find_events(np.concatenate(pieces), hop, names):
                times = (f"{event.onset:.2f}", f"{event.offset:.2f}")
                writer.writerow((source.path(i), *times, event.label, f"{event.probability:.4f}"))
                rows += 1
    return rows


def _pieces(source: Source, bad: list[tuple[str, str]]) -> Iterator[tuple[int, float, torch.Tensor]]:
    """(clip, seconds from its start, (1, T) samples), one after the other."""
    for i in range(len(source)):
        for start in np.arange(0.0, max(float(source.seconds[i]) - 0.05, 0.01), _PIECE_SECONDS).tolist():
            try:
                yield i, start, torch.from_numpy(source.waveform(i, start, _PIECE_SECONDS))[None]
            except AudioError as error:
                bad.append((source.path(i), str(error)))
                break
