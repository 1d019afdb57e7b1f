"""Classes of new audio by a trained classifier, into CSV: a row a clip, pieces of long ones, or events with times."""

import csv
import logging
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
from src.training.run_folder import checkpoint_to_resume

log = logging.getLogger("src")
_PIECE_SECONDS = 10.0  # of a long file


@torch.no_grad()
def predict(config: Config, checkpoint: str | None) -> int:
    """Classes of `data.test` into predictions-new.csv in the run's folder; exit status 1 if some could not be read."""
    path = checkpoint_to_resume(config.runs_folder, config.name, checkpoint or "auto")
    if path is None:
        raise UserError(f"{config.runs_folder}/{config.name} has no checkpoint; give one with --checkpoint PATH")
    if config.data.test is None:
        raise UserError("data.test is not set; predict needs it, for example data.test.path=FOLDER")
    model = load_classifier(path)
    source = open_source(config.data.test)
    bad = list(source.bad_paths)
    target = path.parent.parent / "predictions-new.csv"
    rows = _events(model, source, target, bad) if model.pooling is None else _classes(model, source, target, bad)
    log.info("%d rows: %s", rows, target)
    for name, reason in bad:
        log.info("skipped %s: %s", name, reason)
    return 1 if bad else 0


def _classes(model: AudioClassifier, source: Source, file: Path, bad: list[tuple[str, str]]) -> int:
    """A row each 10 s."""
    places: list[tuple[str, float]] = []
    found = []
    for i, start, waveform in _pieces(source, bad):
        found.append(model.probabilities(model(waveform))[0].numpy())
        places.append((source.path(i), start))
    write_predictions(file, places, np.array(found), model.class_names)
    return len(places)


def _events(model: AudioClassifier, source: Source, file: Path, bad: list[tuple[str, str]]) -> int:
    """A row an event: path, onset and offset in seconds, label, mean probability."""
    rows = 0
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("path", "onset", "offset", "label", "probability"))
        chances: dict[int, list[np.ndarray]] = {}
        for i, _, waveform in _pieces(source, bad):
            chances.setdefault(i, []).append(model.probabilities(model(waveform))[0].numpy())
        for i, pieces in chances.items():
            for event in find_events(np.concatenate(pieces), model.encoder.hop_seconds, model.class_names):
                times = (f"{event.onset:.2f}", f"{event.offset:.2f}")
                writer.writerow((source.path(i), *times, event.label, f"{event.probability:.4f}"))
                rows += 1
    return rows


def _pieces(source: Source, bad: list[tuple[str, str]]):
    """(clip, seconds from its start, (1, T) samples), one after the other."""
    for i in range(len(source)):
        for start in np.arange(0.0, max(float(source.seconds[i]) - 0.05, 0.01), _PIECE_SECONDS).tolist():
            try:
                yield i, start, torch.from_numpy(source.waveform(i, start, _PIECE_SECONDS))[None]
            except AudioError as error:
                bad.append((source.path(i), str(error)))
                break
