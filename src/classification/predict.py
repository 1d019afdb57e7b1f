"""Predict the classes of new audio and write a CSV: a row per clip or segment of about 10 s, or a row per event."""

import csv
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from src.atomic import writing_new
from src.audio.decode import AudioError
from src.audio.levels import Levels, warn_of_oddities
from src.classification.batches import Segment, probabilities_of
from src.classification.report import write_predictions
from src.config.settings import Config
from src.data.sources.open import open_any
from src.data.sources.source import Source
from src.encoders.load import load_classifier
from src.errors import UserError
from src.evaluation.events import find_events
from src.models.classifier import AudioClassifier
from src.models.packed import packed_linears
from src.skipped import report_skipped
from src.training.run_folder import checkpoint_of, later_starts, results_folder
from src.training.trainer import find_device

log = logging.getLogger("src")
_SEGMENT_SECONDS = 10.0


def predict(config: Config, checkpoint: str | None) -> int:
    """Write the classes of `data.test` to predictions-new.csv, or predictions-new-2.csv and so on if it exists.

    It goes to the run folder of the checkpoint, or to the current folder if it belongs to no run. What `data.test.path`
    is decides its kind.

    A cross-validated run predicts the mean probabilities of its folds.

    Returns:
        Exit status: 1 if some clips could not be read, else 0.

    Raises:
        UserError: there is no such checkpoint, data.test is not set, or no clip of it could be read.
    """
    paths = find_classifiers(config, checkpoint)
    if config.data.test is None:
        raise UserError("data.test is not set; predict needs it, for example data.test.path=FOLDER")
    models = [load_classifier(path).to(find_device(config.trainer)) for path in paths]
    source = open_any(config.data.test)
    bad, odd = list(source.bad_paths), list[tuple[str, str]]()
    log.info("checkpoint: %s", paths[0] if len(paths) == 1 else f"the mean of {len(paths)} folds, {paths[0]}, ...")
    write = _events if models[0].pooling is None else _classes
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(packed_linears(model.encoder))
        unfinished, target = stack.enter_context(writing_new(results_folder(paths[0]) / "predictions-new.csv"))
        rows = write(models, _segments(source, models[0].encoder.hop_seconds, bad, odd), source, unfinished)
        warn_of_oddities(odd)
        status = report_skipped(bad, target.with_suffix(".skipped.csv"))
        if len(bad) == len(source) + len(source.bad_paths):
            raise UserError(f"no clip of {config.data.test.path} could be read; there are no predictions")
    log.info("%d rows: %s", rows, target)
    return status


def find_classifiers(config: Config, checkpoint: str | None) -> list[Path]:
    """The checkpoints to average: one, or one per fold.

    Raises:
        UserError: there is none.
    """
    assert config.classify is not None
    if later := later_starts(config.runs_folder, config.name):
        log.info("note: %s is a later run of the same name; --checkpoint %s uses it", later[-1], later[-1])
    folder = Path(checkpoint) if checkpoint not in (None, "best", "last") else Path(config.runs_folder, config.name)
    if folds := sorted(folder.glob("fold-*")):
        which = checkpoint if checkpoint in ("best", "last") else None
        return [checkpoint_of(str(fold.parent), fold.name, which) for fold in folds]
    return [checkpoint_of(config.runs_folder, config.name, checkpoint)]


def _classes(models: list[AudioClassifier], found: Iterable[Segment], source: Source, file: Path) -> int:
    """A row per segment; returns the number of rows."""
    rows = ((source.path(i), start, each) for i, start, each in probabilities_of(models, found))
    return write_predictions(file, rows, models[0].class_names)


def _events(models: list[AudioClassifier], found: Iterable[Segment], source: Source, file: Path) -> int:
    """A row per event: path, onset and offset in seconds, label, mean probability; returns the number of rows."""
    rows = 0
    hop, names = models[0].encoder.hop_seconds, models[0].class_names
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("path", "onset", "offset", "label", "probability"))
        for i, rows_of_clip in groupby(probabilities_of(models, found), key=lambda row: row[0]):
            probabilities = np.concatenate([each for _, _, each in rows_of_clip])
            for event in find_events(probabilities, hop, names):
                times = (f"{event.onset:.2f}", f"{event.offset:.2f}")
                writer.writerow((source.path(i), *times, event.label, f"{event.probability:.4f}"))
                rows += 1
    return rows


def _segments(
    source: Source, hop_seconds: float, bad: list[tuple[str, str]], odd: list[tuple[str, str]]
) -> Iterator[Segment]:
    """Yield the segments of all clips.

    Unreadable clips are added to `bad` as (path, reason), those with odd sound (`src.audio.levels`) to `odd`.
    """
    for i in range(len(source)):
        levels = Levels()
        try:
            for start, seconds in segments(float(source.seconds[i]), hop_seconds):
                waveform = source.waveform(i, start, seconds)
                levels.add(waveform)
                yield i, start, torch.from_numpy(waveform)[None]
            if what := levels.oddity(partial(source.read, i)):
                odd.append((source.path(i), what))
        except AudioError as error:
            bad.append((source.path(i), str(error)))


def segments(seconds: float, hop_seconds: float) -> list[tuple[float, float]]:
    """(start, length) in seconds of equal parts of a clip, of about 10 s each; a clip under 15 s is one.

    Parts begin on a token's edge, so that the tokens of one follow those of the other.
    """
    count = max(1, round(seconds / _SEGMENT_SECONDS))
    starts = [round(i * seconds / count / hop_seconds) * hop_seconds for i in range(count)]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], seconds], strict=True)]
