"""A classifier from settings to files: labelled set, encoder, training, report, predictions."""

import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import wandb
from torch import Tensor

from src.checkpoint import load_classifier, load_encoder
from src.config import ClassifyConfig, Config
from src.data.decode import SAMPLE_RATE, AudioError
from src.data.labelled import PARTS, LabelledPart, LabelledSet, read_labelled
from src.data.labelled_data import LabelledData
from src.data.sources import open_source
from src.errors import UserError
from src.evaluation.embeddings import calibrate_norm, embed_clips, mel_statistics
from src.evaluation.linear import linear_accuracy
from src.evaluation.report import report
from src.models.classifier import AudioClassifier
from src.models.sizes import create_encoder
from src.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from src.training.classify import AudioClassification
from src.training.run import describe_run, log_to, make_loggers, precision
from src.training.run_folder import checkpoint_to_resume, free_folder, start_folder

log = logging.getLogger("src")
_READ_AT_ONCE = 512  # clips that are decoded before they are embedded


def fit_classifier(config: Config) -> int:
    """Train, test, report; returns the exit status."""
    classify = config.classify
    assert classify is not None
    started = time.monotonic()
    labelled = read_set(config)
    encoder = make_encoder(config, labelled)
    model = AudioClassifier(encoder, labelled.class_names, classify.layer, classify.pooling, labelled.multi)
    data = LabelledData(labelled, config.data, config.seed)
    batches = -(-len(labelled.parts["train"]) // (data.batch_size * config.trainer.devices * config.trainer.num_nodes))
    config.trainer.steps = classify.epochs * -(-batches // config.trainer.accumulate)
    folder = free_folder(config.runs_folder, config.name)
    config.name = folder.name
    start_folder(folder, config)
    log_to(folder / "log.txt")
    log.info("\n%s\n", describe_set(labelled))
    write_splits(labelled, folder / "splits.csv")
    parts = PARTS if classify.method == "linear" else PARTS[:1]
    embeddings = {name: embed_part(model, labelled.parts[name]) for name in parts}
    model.head[0].fit(embeddings["train"])  # type: ignore[operator]
    if classify.method == "linear":
        data.embeddings = embeddings
    clips_per_step = data.batch_size * config.trainer.devices * config.trainer.num_nodes * config.trainer.accumulate
    counts = torch.from_numpy(labelled.parts["train"].targets.sum(0))
    steps = config.trainer.steps
    module = AudioClassification(model, classify, config.optimizer, counts, clips_per_step, steps, config.seed)
    about = describe_run(config, {"encoder": encoder.architecture, "classifier": model.settings})
    checkpoints = Checkpoints(folder / "checkpoints", 10**9, config.trainer.save_best, about)
    trainer = make_trainer(config, classify, folder, checkpoints, about)
    try:
        trainer.fit(module, datamodule=data)
        best = checkpoints.best()[0]
        module.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        trainer.test(module, datamodule=data, verbose=False)
    except KeyboardInterrupt:
        log.info("interrupted; what was learnt is in %s", checkpoints.folder)
        return 130
    finally:
        if config.tracking.wandb:
            wandb.finish()
    if trainer.is_global_zero:
        found = write_report(module, labelled, folder)
        log.info("\n%s", closing_lines(found, labelled, time.monotonic() - started, best, folder))
    return 0


def read_set(config: Config) -> LabelledSet:
    classify, data = config.classify, config.data
    assert classify is not None
    multi = {"auto": None, "single": False, "multi": True}[classify.task]
    return read_labelled(
        data.sources, data.validation, data.test, multi, config.seed, classify.test_fold, data.cache_gigabytes
    )


def make_encoder(config: Config, labelled: LabelledSet):
    """That of `model.init_from`, or a new one whose batch norm has seen some of the training clips."""
    if config.model.init_from:
        return load_encoder(config.model.init_from, drop_path=config.model.drop_path)
    encoder = create_encoder(config.model.size, config.model.drop_path, config.model.layer_scale, seed=config.seed)
    calibrate_norm(encoder, read_some(labelled.parts["train"], 256))
    return encoder.eval()


def read_some(part: LabelledPart, most: int) -> list[np.ndarray]:
    """Up to `most` readable clips, evenly over the part, 10 s of each at most."""
    waveforms = []
    for i in np.linspace(0, len(part) - 1, min(most, len(part))).astype(int).tolist():
        try:
            waveforms.append(part.waveform(i, 0.0, 10.0))
        except AudioError:
            continue
    return waveforms


def embed_part(model: AudioClassifier, part: LabelledPart) -> Tensor:
    """(n, D) of all clips, for a frozen encoder; zeros for a clip that cannot be read."""
    rows = []
    for start in range(0, len(part), _READ_AT_ONCE):
        waveforms = []
        for i in range(start, min(start + _READ_AT_ONCE, len(part))):
            try:
                waveforms.append(part.waveform(i))
            except AudioError:
                waveforms.append(np.zeros(SAMPLE_RATE, np.float32))
        rows.append(embed_clips(model.encoder, waveforms, model.layer, model.pooling))
    return torch.from_numpy(np.concatenate(rows))


def describe_set(labelled: LabelledSet) -> str:
    parts = ", ".join(f"{len(part)} {name}" for name, part in labelled.parts.items())
    kind = "several a clip" if labelled.multi else "one a clip"
    lines = [f"{parts} clips; {len(labelled.class_names)} classes ({kind}): {', '.join(labelled.class_names[:20])}"]
    if labelled.bad:
        examples = "; ".join(f"{path}: {reason}" for path, reason in labelled.bad[:3])
        lines.append(f"{len(labelled.bad)} unreadable clips left out ({examples})")
    return "\n".join([*lines, *(f"note: {note}" for note in labelled.notes)])


def write_splits(labelled: LabelledSet, file: Path) -> None:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("path", "label", "split"))
        for name, part in labelled.parts.items():
            for key, target in zip(part.keys, part.targets, strict=True):
                writer.writerow((key, ";".join(np.array(labelled.class_names)[target > 0]), name))


def make_trainer(
    config: Config, classify: ClassifyConfig, folder: Path, checkpoints: Checkpoints, about: dict[str, Any]
) -> L.Trainer:
    settings = config.trainer
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return L.Trainer(
        default_root_dir=folder,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy="ddp_find_unused_parameters_true" if settings.devices * settings.num_nodes > 1 else "auto",
        precision=precision(config),
        max_epochs=classify.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=config.optimizer.gradient_clip,
        log_every_n_steps=settings.log_every_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # labelled_data.py deals the clips out, each once in validation and test
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,  # callbacks/checkpoints.py saves
        callbacks=[checkpoints],
        logger=make_loggers(config, folder, about),
        plugins=[AtomicCheckpointIO()],
    )


def write_report(module: AudioClassification, labelled: LabelledSet, folder: Path) -> dict[str, Any]:
    """report.json and predictions.csv of the test part."""
    part = labelled.parts["test"]
    index = sorted(module.predictions)
    keys, targets = [part.keys[i] for i in index], part.targets[index]
    probabilities = torch.stack([module.predictions[i] for i in index]).float().numpy()
    found = report(keys, targets, probabilities, labelled.class_names, labelled.multi)
    found["floors"] = floors(labelled) if not labelled.multi else {}
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_predictions(folder / "predictions.csv", [(key, 0.0) for key in keys], probabilities, labelled.class_names)
    return found


def floors(labelled: LabelledSet) -> dict[str, float]:
    """Accuracy on test of the commonest class of train, and of logistic regression on mel mean and deviation."""
    train, test = labelled.parts["train"], labelled.parts["test"]
    true, learnt = test.targets.argmax(1), train.targets.argmax(1)
    rows = {}
    for name, part in (("train", train), ("test", test)):
        rows[name] = np.concatenate([mel_statistics([part.waveform(i)]) for i in range(len(part))])
    mean, deviation = rows["train"].mean(0), rows["train"].std(0) + 1e-6
    mel = linear_accuracy((rows["train"] - mean) / deviation, learnt, (rows["test"] - mean) / deviation, true)
    return {"majority": float((true == np.bincount(learnt).argmax()).mean()), "mel": mel}


def write_predictions(
    file: Path, rows: list[tuple[str, float]], probabilities: np.ndarray, class_names: list[str], top: int = 3
) -> None:
    """A row a clip, or a piece of a long one: path, where it begins in seconds, the likeliest classes."""
    top = min(top, len(class_names))
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        columns = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("label", "probability")]
        writer.writerow(["path", "start_seconds", *columns])
        for (key, start), row in zip(rows, probabilities, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            writer.writerow([key, f"{start:.2f}", *(cell for c in best for cell in (class_names[c], f"{row[c]:.4f}"))])


@torch.no_grad()
def predict(config: Config, checkpoint: str | None) -> int:
    """Classes of new audio, `data.test`, into predictions.csv in the current folder; long files in pieces of 10 s."""
    path = checkpoint_to_resume(config.runs_folder, config.name, checkpoint or "auto")
    if path is None:
        raise UserError(f"{config.runs_folder}/{config.name} has no checkpoint; give one with --checkpoint PATH")
    if config.data.test is None:
        raise UserError("data.test is not set; predict needs it, for example data.test.path=FOLDER")
    model = load_classifier(path)
    source = open_source(config.data.test)
    bad = list(source.bad_paths)
    rows: list[tuple[str, float]] = []
    found = []
    piece = 10.0
    for i in range(len(source)):
        for start in np.arange(0.0, max(float(source.seconds[i]) - 0.05, 0.01), piece).tolist():
            try:
                waveform = torch.from_numpy(source.waveform(i, start, piece))[None]
            except AudioError as error:
                bad.append((source.path(i), str(error)))
                break
            found.append(model.probabilities(model(waveform))[0].numpy())
            rows.append((source.path(i), start))
    target = path.parent.parent / "predictions-new.csv"
    if rows:
        write_predictions(target, rows, np.stack(found), model.class_names)
        log.info("%d rows: %s", len(rows), target)
    for name, reason in bad:
        log.info("skipped %s: %s", name, reason)
    return 1 if bad else 0


def closing_lines(found: dict[str, Any], labelled: LabelledSet, seconds: float, best: Path, folder: Path) -> str:
    lines = []
    for name, value in found["scores"].items():
        low, high = found["intervals"][name]
        lines.append(f"test {name:<10} {value:.3f}  (95 %: {low:.3f} to {high:.3f}, {found['clips']} clips)")
    lines += [f"floor {name:<9} {value:.3f}" for name, value in found["floors"].items()]
    rows = {"time": f"{seconds / 60:.1f} minutes", "checkpoint": best, "report": folder / "report.json",
            "predictions": folder / "predictions.csv"}  # fmt: skip
    return "\n".join([*lines, *(f"{name:<15} {value}" for name, value in rows.items())])
