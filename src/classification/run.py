"""Classification commands: train, test and report a classifier from the settings, once or per fold."""

import csv
import logging
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor, nn

from src.classification.features import embed, mel_rows, read
from src.classification.lora import add_adapters, remove_adapters
from src.classification.module import AudioClassification, frame_targets
from src.classification.report import describe, pooled_report, write_report
from src.config.settings import ClassifyConfig, Config
from src.data.labelled.clips import LabelledClips, read_labelled
from src.data.labelled.datamodule import LabelledDataModule, events_of
from src.data.labelled.splits import LabelledSet, Split, check_events, find_folds, make_splits
from src.data.sources.annotations import in_order, labels_cell
from src.encoders.load import load_classifier, load_encoder
from src.encoders.low_rank import merge, save_adapters
from src.errors import UserError
from src.evaluation.embeddings import calibrate_norm, parse_layer
from src.evaluation.linear import fit_linear
from src.models.classifier import AudioClassifier, Standardize
from src.models.sizes import create_encoder
from src.models.vit import AudioViT
from src.skipped import write_skipped
from src.training.callbacks.checkpoints import Checkpoints
from src.training.callbacks.step_figures import StepFigures
from src.training.distributed.parallel import make_strategy
from src.training.run import Run, is_first
from src.training.run_folder import checkpoint_of, claim_folder
from src.training.trainer import find_device, make_trainer

log = logging.getLogger("src")
_MAX_MEL_CLIPS = 20_000  # no mel floor for larger sets


class Features(NamedTuple):
    """Features of all clips, computed once for all folds.

    embeddings: of a frozen encoder, one per clip; None for fine-tuning. mel: (n, 128); None for a large set.
    """

    embeddings: list[Tensor] | None
    mel: np.ndarray | None


def fit(config: Config, resume: str | None = None) -> int:
    """Train, test and report; returns the exit status."""
    with Run(config, resume) as run:
        return train(config, run)


def train(config: Config, run: Run) -> int:
    """Train on the set's splits, or once per fold, and report the test split; returns the exit status."""
    classify = config.classify
    assert classify is not None
    started = time.monotonic()
    labelled = read_set(config)
    if run.checkpoint:
        labelled = with_classes(load_classifier(run.checkpoint).class_names, labelled, run.checkpoint)
    folds = find_folds(labelled, classify.folds, config.seed)
    test_folds = in_order(folds) if classify.folds and folds else [classify.test_fold]
    sets = [make_splits(labelled, config.seed, folds, fold) for fold in test_folds]
    first = make_classifier(config, sets[0], run.checkpoint)
    for divided in sets if classify.level == "frame" else []:
        check_events(divided, first.encoder.hop_seconds)
    run.start(describe(sets[0]))
    if (skipped := [*labelled.bad, *labelled.left_out]) and is_first():
        write_skipped(skipped, run.folder / "skipped.csv")
    features = compute_features(first, labelled, config)
    results: list[dict[str, Any]] = []
    for fold, divided in zip(test_folds, sets, strict=True):
        fold_run = run.fold(fold) if classify.folds else run
        if status := fit_once(config, fold_run, divided, features, results):
            return status
    if classify.folds and is_first():
        pooled_report(results, test_folds, sets, run.folder, time.monotonic() - started)
    if is_first():
        settings = shlex.quote(str(run.folder / "config.yaml"))
        log.info("next: python -m src.train predict --config %s data.test.path=NEW_SOUNDS", settings)
    return 0


def fit_once(config: Config, run: Run, labelled: LabelledSet, features: Features, results: list[dict[str, Any]]) -> int:
    """Train on one set of splits and append the report of its test split to `results`; returns the exit status."""
    classify = config.classify
    assert classify is not None
    started = time.monotonic()
    model = make_classifier(config, labelled, run.checkpoint)
    data = make_data(config, labelled, features.embeddings, model.encoder.hop_seconds)
    if not run.checkpoint:
        start_head(model, labelled.parts["train"], data, classify, find_device(config.trainer))
    if classify.lora_rank:
        add_adapters(model.encoder, classify.lora_rank, config.seed)
    counts = labelled.parts["train"].targets.sum(0).tolist()
    module = AudioClassification(model, classify, config.optimizer, counts, config.seed)
    if is_first():
        write_splits(labelled, run.folder / "splits.csv")

    def close(trainer: L.Trainer, checkpoints: Checkpoints) -> None:
        trainer.strategy.barrier()
        path = checkpoints.to_report()
        remove_adapters(module)
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(merge(state))
        if classify.lora_rank and config.model.init_from and trainer.is_global_zero:
            named = {name.removeprefix("model."): value for name, value in state.items()}
            save_adapters(named, module.model, config.model.init_from, run.folder / "adapters.safetensors")
        trainer.test(module, datamodule=data, verbose=False)
        if trainer.is_global_zero:
            seconds = time.monotonic() - started
            mel = None if features.mel is None else {n: features.mel[part.rows] for n, part in labelled.parts.items()}
            results.append(write_report(module, labelled, mel, run.folder, path, seconds, trainer.loggers))

    architecture = {"encoder": model.encoder.architecture, "classifier": model.settings}
    strategy = make_strategy(config.trainer, find_unused_parameters=True)
    return run.fit(
        module, data, architecture, strategy, [], close, StepFigures(),
        val_check_interval=config.trainer.val_check_interval,
        check_val_every_n_epoch=config.trainer.check_val_every_n_epoch,
    )  # fmt: skip


def test(config: Config, checkpoint: str | None) -> int:
    """Report a trained classifier on the test split.

    Raises:
        UserError: there is no such checkpoint, its classes differ from the set's, or the run is cross-validated.
    """
    assert config.classify is not None
    if config.classify.folds and checkpoint is None:
        raise UserError(
            "a cross-validated run has already tested every clip (report.json); choose a fold with --checkpoint, for "
            f"example {config.runs_folder}/{config.name}/fold-1"
        )
    started = time.monotonic()
    path = checkpoint_of(config.runs_folder, config.name, checkpoint)
    config.trainer.devices = config.trainer.num_nodes = 1
    model = load_classifier(path)
    labelled = with_classes(model.class_names, read_set(config), path)
    folds = find_folds(labelled, config.classify.folds, config.seed)
    divided = make_splits(labelled, config.seed, folds, config.classify.test_fold)
    if config.classify.level == "frame":
        check_events(divided, model.encoder.hop_seconds)
    folder = claim_folder(config.runs_folder, f"{config.name}-test")
    module = AudioClassification(model, config.classify, config.optimizer, None, config.seed)
    trainer = make_trainer(config.trainer, folder, "auto", [], [])
    trainer.test(module, datamodule=make_data(config, divided), verbose=False)
    write_report(module, divided, None, folder, path, time.monotonic() - started, [])
    return 0


def read_set(config: Config) -> LabelledClips:
    """Read the labeled set.

    Raises:
        UserError: as `read_labelled`; too many unreadable clips; or classify.level=frame without event times.
    """
    classify, data = config.classify, config.data
    assert classify is not None
    multi = {"auto": None, "single": False, "multi": True}[classify.task]
    labelled = read_labelled(data.sources, data.validation, data.test, multi, data.cache_gigabytes)
    total = len(labelled.clips) + len(labelled.bad)
    if len(labelled.bad) > data.max_bad_share * total:
        path, reason = labelled.bad[0]
        raise UserError(
            f"{len(labelled.bad)} of {total} clips cannot be read, more than data.max_bad_share={data.max_bad_share} "
            f"({path}: {reason}); fix them or raise the share"
        )
    if classify.level == "frame":
        without = next((clip for clip in labelled.clips if not clip.annotation.events), None)
        if without:
            raise UserError(
                f"classify.level=frame, but {without.key} has no event times; give labels.csv the columns onset and "
                "offset (seconds)"
            )
        return replace(labelled, multi=True)
    return labelled


def with_classes(class_names: list[str], labelled: LabelledClips, path: Path) -> LabelledClips:
    """The set with the classes in the order of a checkpoint.

    Raises:
        UserError: they are not the same classes.
    """
    missing = [name for name in class_names if name not in labelled.class_names]
    new = [name for name in labelled.class_names if name not in class_names]
    if missing or new:
        raise UserError(
            f"{path} and the set have different classes: only in the checkpoint {', '.join(missing) or 'none'}; "
            f"only in the set {', '.join(new) or 'none'}"
        )
    return replace(labelled, class_names=list(class_names))


def make_classifier(config: Config, labelled: LabelledSet, resumed: Path | None = None) -> AudioClassifier:
    """A classifier with the encoder of `model.init_from`, or a new one with batch-norm statistics of training clips.

    Args:
        resumed: checkpoint of a run that is resumed, which has the encoder; its other weights are loaded later.

    Raises:
        UserError: as `load_encoder`; or the encoder has no block classify.layer.
    """
    classify, model = config.classify, config.model
    assert classify is not None
    if start := resumed or model.init_from:
        encoder: AudioViT = load_encoder(
            start, drop_path=model.drop_path, gradient_checkpointing=bool(model.gradient_checkpointing)
        )
    else:
        encoder = create_encoder(
            model.size, model.drop_path, model.layer_scale, seed=config.seed,
            gradient_checkpointing=bool(model.gradient_checkpointing),
        )  # fmt: skip
        calibrate_norm(encoder, sample_waveforms(labelled.parts["train"], 256))
        encoder.eval()
    layer = parse_layer(classify.layer, encoder.depth, "classify.layer")
    pooling = None if classify.level == "frame" else classify.pooling
    return AudioClassifier(encoder, labelled.class_names, layer, pooling, labelled.multi)


def compute_features(model: AudioClassifier, labelled: LabelledClips, config: Config) -> Features:
    """Embeddings for a linear probe, and mel statistics for the floor."""
    assert config.classify is not None
    embeddings = None
    if config.classify.method == "linear":
        model.encoder.to(find_device(config.trainer))
        embeddings = embed(model, labelled.clips)
    return Features(embeddings, mel_rows(labelled.clips) if len(labelled.clips) <= _MAX_MEL_CLIPS else None)


def make_data(
    config: Config, labelled: LabelledSet, embeddings: list[Tensor] | None = None, hop_seconds: float = 0.04
) -> LabelledDataModule:
    """The data module of one set of splits.

    Args:
        embeddings: of every clip of the whole set, for a frozen encoder. hop_seconds: between its tokens.
    """
    assert config.classify is not None
    balanced, overfit = config.classify.balanced == "sampling", bool(config.trainer.overfit_batches)
    data = LabelledDataModule(labelled, config.data, config.seed, balanced, overfit)
    if embeddings is not None:
        data.hop_seconds = hop_seconds
        data.embeddings = {name: [embeddings[row] for row in part.rows] for name, part in labelled.parts.items()}
    return data


def sample_waveforms(part: Split, max_clips: int) -> list[np.ndarray]:
    """Up to `max_clips` evenly spaced clips of a split, at most 10 s of each."""
    chosen = np.linspace(0, len(part) - 1, min(max_clips, len(part))).astype(int).tolist()
    return [read(part.clips[i], 10.0) for i in chosen]


def start_head(
    model: AudioClassifier,
    train: Split,
    data: LabelledDataModule,
    classify: ClassifyConfig,
    device: torch.device,
) -> None:
    """Fit the standardization on train embeddings; for probe_then_finetune, the linear layer by logistic regression."""
    model.encoder.to(device)
    embedded = data.embeddings["train"] if data.embeddings else embed(model, train.clips)
    standardize, linear = model.head
    assert isinstance(standardize, Standardize) and isinstance(linear, nn.Linear)
    rows = torch.cat(embedded) if model.pooling is None else torch.stack(embedded)
    standardize.fit(rows)
    if classify.method != "probe_then_finetune":
        return
    targets = train.targets
    if model.pooling is None:
        columns = {name: number for number, name in enumerate(model.class_names)}
        targets = np.concatenate([
            frame_targets(events_of(train, i, columns)[None], model.encoder.token_times(len(tokens)), len(columns))[0]
            for i, tokens in enumerate(embedded)
        ])  # fmt: skip
    scaled = ((rows - standardize.mean.cpu()) / standardize.deviation.cpu()).numpy()
    weight, bias = fit_linear(scaled, targets, model.multi, classify.balanced is not None)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))


def write_splits(labelled: LabelledSet, file: Path) -> None:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("path", "label", "split"))
        for name, part in labelled.parts.items():
            for key, target in zip(part.keys, part.targets, strict=True):
                labels = [label for label, present in zip(labelled.class_names, target, strict=True) if present]
                writer.writerow((key, labels_cell(labels), name))
