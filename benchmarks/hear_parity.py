"""Our scores and HEAR's predictor beside those of the `heareval` package (2021.1.3), on log-mel features of the demo.

`heareval` can't be installed with today's packages: its pins (numpy 1.19, numba 0.48, tensorflow) are for Python 3.8.
But its predictor runs with lightning 1.9 from a folder of its own, which is put first on the path:

    pip install --target SITE --no-deps heareval==2021.1.3 pytorch-lightning==1.9.5 "setuptools<81" sed_eval==0.2.1 \
        dcase_util torchinfo more_itertools intervaltree six future validators pydot_ng librosa lazy_loader
    python -m benchmarks.hear_parity --site SITE [--only scores,predictor]

- scores: metrics, events and scores of events on random arrays; the largest difference.
- predictor: the predictor as it is, but for fewer grid points and epochs: chosen epoch, scores, largest difference of
  the test predictions. Both draw the same random numbers, as two things of the kit are kept from drawing some: the
  summary in its constructor (torchinfo), and its data loaders, which get a generator of their own.

Three tasks: clips with one label (the demo's), clips with several (mixtures of two), and events (clips in a row).
"""

import argparse
import contextlib
import functools
import io
import json
import logging
import os
import pickle
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch

from benchmarks.report import machine_and_date, table
from src.evaluation.embeddings import mel_statistics
from src.evaluation.event_scores import EVENT_METRICS, score_events
from src.evaluation.events import hear_events
from src.evaluation.metrics import METRICS, score_rows
from src.evaluation.mlp import draw_points, hear_mlp
from src.evaluation.problem import Event, Frames, Part, Problem
from src.models.log_mel import LogMel

DEMO = Path(__file__).parent.parent / "data" / "demo" / "data"
SPLITS = ("train", "valid", "test")
HOP_MS = 40.0


def demo_clips(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Waveforms and labels of a split of the demo."""
    rows = pq.read_table(next(DEMO.glob(f"{'validation' if split == 'valid' else split}-*.parquet"))).to_pylist()
    return (
        [soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0] for row in rows],
        np.array([row["label"] for row in rows]),
    )


def scene_part(split: str) -> Part:
    clips, labels = demo_clips(split)
    return Part(mel_statistics(clips).astype(np.float32), labels)


def mixed_part(split: str) -> Part:
    """Each clip mixed with another; both labels."""
    clips, labels = demo_clips(split)
    partner = np.random.default_rng(0).permutation(len(clips))
    mixed = []
    for i, j in enumerate(partner):
        samples = np.zeros(max(len(clips[i]), len(clips[j])), np.float32)
        samples[: len(clips[i])] += clips[i] / 2
        samples[: len(clips[j])] += clips[j] / 2
        mixed.append(samples)
    targets = np.zeros((len(clips), 13), np.float32)
    targets[np.arange(len(clips)), labels] = targets[np.arange(len(clips)), labels[partner]] = 1
    return Part(mel_statistics(mixed).astype(np.float32), targets)


def event_part(split: str) -> Part:
    """Eight clips in a row with pauses; features are the log-mel bands of a frame and of its neighbors."""
    clips, labels = demo_clips(split)
    order = np.random.default_rng(1).permutation(len(clips))
    log_mel, features, targets, times, index, events = LogMel(), [], [], [], [], []
    for scene, chosen in enumerate(np.array_split(order, len(order) // 8)):
        pieces, found, position = [], [], 0
        for i in chosen:
            gap = 3200 * (1 + i % 5)
            pieces += [np.zeros(gap, np.float32), clips[i][:16000]]
            begin, position = position + gap, position + gap + len(clips[i][:16000])
            found.append(Event(begin / 16000, position / 16000, int(labels[i])))
        waveform = np.concatenate(pieces) + 1e-4 * np.random.default_rng(scene).normal(size=position)
        bands = log_mel(torch.from_numpy(waveform.astype(np.float32))[None])[0][0].T.numpy()
        frames = bands[: len(bands) // 4 * 4].reshape(-1, 4, 64).mean(1)
        time_ms = HOP_MS * (np.arange(len(frames)) + 0.5)
        features.append(np.concatenate([np.roll(frames, shift, 0) for shift in (-2, 0, 2)], 1))
        target = np.zeros((len(frames), 13), np.float32)
        for event in found:
            target[(time_ms >= 1000 * event.onset) & (time_ms <= 1000 * event.offset), event.label] = 1
        targets.append(target)
        times.append(time_ms)
        index.append(np.full(len(frames), scene))
        events.append(found)
    where = Frames(np.concatenate(index), np.concatenate(times), events)
    return Part(np.concatenate(features).astype(np.float32), np.concatenate(targets), where)


def problems() -> dict[str, Problem]:
    multi = ["mAP", "d_prime", "aucroc", "top1_acc"]
    events = ["event_onset_200ms_fms", "segment_1s_er"]
    kinds = [
        ("one label", scene_part, "multiclass", ["top1_acc", *multi[:3]]),
        ("several labels", mixed_part, "multilabel", multi),
        ("events", event_part, "multilabel", events),
    ]
    return {name: Problem(*(make(split) for split in SPLITS), kind, 13, metrics) for name, make, kind, metrics in kinds}


def write_task(problem: Problem, folder: Path, grid: dict[str, list]) -> None:
    """The problem as a folder of embeddings of the kit."""
    metadata = {
        "task_name": "parity",
        "embedding_type": "event" if problem.train.frames else "scene",
        "prediction_type": problem.kind,
        "split_mode": "trainvaltest",
        "splits": list(SPLITS),
        "evaluation": list(problem.metrics),
        "evaluation_params": {"task_specific_param_grid": grid},
    }
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    rows = "".join(f"{c},{c}\n" for c in range(problem.num_classes))
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + rows)
    for name, part in zip(SPLITS, (problem.train, problem.valid, problem.test), strict=True):
        part.features.tofile(folder / f"{name}.embeddings.npy")
        (folder / f"{name}.embedding-dimensions.json").write_text(json.dumps(part.features.shape))
        hot = part.targets if part.targets.ndim == 2 else np.eye(problem.num_classes)[part.targets]
        labels = [[str(c) for c in np.flatnonzero(row)] for row in hot]
        (folder / f"{name}.target-labels.pkl").write_bytes(pickle.dumps(labels))
        if part.frames:
            places = [
                [f"{name}{clip}.wav", float(time)]
                for clip, time in zip(part.frames.clip, part.frames.time_ms, strict=True)
            ]
            (folder / f"{name}.filename-timestamps.json").write_text(json.dumps(places))
            (folder / f"{name}.json").write_text(json.dumps(kit_events(part.frames.events, name)))


def kit_events(events, name: str = "") -> dict:
    return {
        f"{name}{clip}.wav": [{"label": str(e.label), "start": 1000 * e.onset, "end": 1000 * e.offset} for e in found]
        for clip, found in enumerate(events)
    }


def kit_predictor(problem: Problem, grid: dict[str, list], grid_points: int, seed: int) -> tuple[dict, np.ndarray]:
    """Test results and test predictions (N, C) of the kit."""
    import heareval.predictions.task_predictions as kit

    seed_everything = functools.partial(kit.pl.seed_everything, seed)
    kit.seed_everything = lambda _, workers: seed_everything(workers=workers)
    logger = kit.logging.getLogger("parity")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), quiet():
        write_task(problem, Path(folder), grid)
        width = problem.train.features.shape[1]
        kit.task_predictions(Path(folder), width, grid_points, None, True, True, "default", logger)
        predictions = pickle.loads(Path("test.predictions.pkl").read_bytes())["prediction"].numpy()
        return json.loads(Path("test.predicted-scores.json").read_text()), predictions


@contextlib.contextmanager
def quiet():
    logging.disable()
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def adapt_kit() -> None:
    """What the kit needs with today's packages, without a change to how it trains."""
    import heareval.predictions.task_predictions as kit

    torch.load = functools.partial(torch.load, weights_only=False)  # checkpoints hold classes
    test = kit.task_predictions_test

    def test_at_best_epoch(**arguments):  # lightning 1.9 has no settable current_epoch
        point = arguments["grid_point"]
        point.trainer.fit_loop.epoch_progress.current.completed = point.epoch
        return test(**arguments)

    kit.task_predictions_test = test_at_best_epoch


def compare_predictors() -> list[list[str]]:
    import heareval.predictions.task_predictions as kit

    kit.torchinfo.summary = lambda *_, **__: None
    kit.DataLoader = functools.partial(kit.DataLoader, generator=torch.Generator())
    rows = []
    for name, problem in problems().items():
        for seed in (42, 43, 44):
            grid = {"max_epochs": [24], "patience": [4]}
            theirs, expected = kit_predictor(problem, grid, 2, seed)
            mine = hear_mlp(replace(problem, grid=grid), seed, grid_points=2, device="cpu")
            split, primary = theirs["test"], problem.metrics[0]
            point = mine.chosen
            shown = f"{point['hidden_layers']} x, {point['lr']}, {point['initialization']}"
            same = all(str(theirs["hparams"][key]) == str(point[key]) for key in ("hidden_layers", "lr"))
            rows.append(
                [name, str(seed), shown if same else f"{shown} but the kit drew {theirs['hparams']}",
                 f"{split['epoch']} / {mine.details['epoch']}",
                 f"{split['validation_score']:.6f} / {mine.valid[primary]:.6f}",
                 f"{split['test_' + primary]:.6f} / {mine.test[primary]:.6f}",
                 f"{np.abs(expected - mine.predictions).max():.1e}"]
            )  # fmt: skip
    return rows


def compare_scores() -> list[list[str]]:
    """Largest differences over random inputs."""
    import heareval.predictions.task_predictions as kit
    from heareval.score import available_scores

    generator, worst = np.random.default_rng(0), dict.fromkeys([*METRICS, "created events", *EVENT_METRICS], 0.0)
    for _ in range(50):
        targets = generator.random((60, 5)) < 0.3
        predictions = generator.random((60, 5)).round(2)  # with ties
        for name in METRICS:
            expected = available_scores[name]({})(predictions, targets.astype(float))
            worst[name] = max(worst[name], abs(expected - score_rows([name], targets, predictions)[name]))
        true, made, theirs = [], [], {}
        for clip in range(4):
            time_ms = generator.choice([20.0, 40.0, 50.0]) * np.arange(200) + 15
            smooth = np.cumsum(generator.normal(size=(200, 5)), 0)
            probabilities = (1 / (1 + np.exp(-smooth))).astype(np.float32)
            filtering, shortest = generator.choice([0, 60, 150, 250]), generator.choice([0, 50, 125, 250])
            rows = {time: torch.from_numpy(row) for time, row in zip(time_ms, probabilities, strict=True)}
            names = {c: str(c) for c in range(5)}
            expected = kit.create_events_from_prediction(rows, names, 0.5, filtering, shortest)
            theirs[f"{clip}.wav"] = expected
            made.append(hear_events(probabilities, time_ms, filtering, shortest))
            flat = sorted((e["start"] / 1000, e["end"] / 1000, int(e["label"])) for e in expected)
            worst["created events"] += flat != [tuple(e) for e in made[-1]]
            moved = [e for e in made[-1] if generator.random() < 0.9]
            shift = generator.choice([0.0, 0.04, 0.05, 0.2, 0.3], size=len(moved))
            true.append(
                [Event(e.onset + s, e.offset + 2 * s + 0.01, e.label) for e, s in zip(moved, shift, strict=True)]
            )
        for name in EVENT_METRICS:
            value = available_scores[name](label_to_idx={str(c): c for c in range(5)})(theirs, kit_events(true))[0][1]
            ours = score_events([name], true_seconds(true), made)[name]
            worst[name] = max(
                worst[name], float(np.nan_to_num(abs(value - ours))) + (np.isnan(value) != np.isnan(ours))
            )
    grid = {**kit.PARAM_GRID, "initialization": ["xavier_uniform_", "xavier_normal_"]}
    random.seed(42)
    points = list(kit.ParameterGrid(grid))
    random.shuffle(points)
    from src.evaluation.mlp import GRID

    keys = [*GRID]
    drawn = [[point[key] for key in keys] for point in points[:8]]
    worst["grid points drawn"] = sum(
        a != [b[key] for key in keys] for a, b in zip(drawn, draw_points(GRID, 8, 42), strict=True)
    )
    return [[name, f"{value:.1e}"] for name, value in worst.items()]


def true_seconds(clips: list[list[Event]]) -> list[list[Event]]:
    """Times after the kit's way from milliseconds, so that rounding doesn't move an event over a tolerance."""
    return [[Event(1000 * e.onset / 1000.0, 1000 * e.offset / 1000.0, e.label) for e in events] for events in clips]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", required=True, help="folder with heareval and its packages")
    parser.add_argument("--only", default="scores,predictor")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(arguments.site).resolve()))
    adapt_kit()
    print(machine_and_date())
    parts = arguments.only.split(",")
    if "scores" in parts:
        print(table(["", "largest difference"], compare_scores()))
    if "predictor" in parts:
        head = ["task", "seed", "grid point", "epoch", "valid: theirs / ours", "test", "predictions"]
        print(table(head, compare_predictors()))


if __name__ == "__main__":
    main()
