"""A classifier from settings to files: labelled set, encoder, training, report, predictions; once, or fold by fold."""

import csv
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import torch
import wandb
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from src.classification.features import embed, mel_rows, read
from src.classification.lora import add_adapters, remove_adapters
from src.classification.module import AudioClassification, frame_targets
from src.classification.report import describe, pooled_report, write_report
from src.config.settings import ClassifyConfig, Config
from src.data.labelled.clips import LabelledClips, read_labelled
from src.data.labelled.datamodule import LabelledData, events_of
from src.data.labelled.splits import LabelledPart, LabelledSet, divide, find_folds
from src.encoders.load import load_classifier, load_encoder
from src.errors import UserError
from src.evaluation.embeddings import calibrate_norm
from src.evaluation.linear import fit_linear
from src.models.classifier import AudioClassifier, Standardize
from src.models.sizes import create_encoder
from src.models.vit import AudioViT
from src.pretraining.run import describe_run, how_to_resume, log_to, make_loggers, precision
from src.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from src.training.run_folder import checkpoint_to_resume, free_folder, start_folder

log = logging.getLogger("src")
_MOST_MEASURED = 20_000  # clips of a set whose mel floor is computed


class Known(NamedTuple):
    """What is computed once for all folds. embeddings: of each clip, for a frozen encoder. mel: (n, 128)."""

    embeddings: list[Tensor] | None
    mel: np.ndarray | None


def fit_classifier(config: Config, resume: str | None = None) -> int:
    """Train, test, report; returns the exit status."""
    classify = config.classify
    assert classify is not None
    started = time.monotonic()
    labelled = read_set(config)
    folds = find_folds(labelled, classify.folds, config.seed)
    tested = sorted(set(folds)) if classify.folds and folds else [classify.test_fold]
    sets = [divide(labelled, config.seed, folds, fold) for fold in tested]
    checkpoint = checkpoint_to_resume(config.runs_folder, config.name, resume) if resume else None
    first = make_classifier(config, sets[0], checkpoint)
    folder = free_folder(config.runs_folder, config.name)
    if checkpoint:
        folder = checkpoint.parents[2 if checkpoint.parents[1].name.startswith("fold-") else 1]
    config.name = folder.name
    if getattr(rank_zero_only, "rank", 0) == 0:  # the other processes learn the folder when training begins
        start_folder(folder, config)
        log_to(folder / "log.txt")
        if labelled.bad:
            write_skipped(labelled.bad, folder / "skipped.csv")
    log.info("\n%s\n", describe(sets[0]))
    first.encoder.to(make_trainer(config, folder, None, {}).strategy.root_device)
    embeddings = embed(first, labelled.clips) if classify.method == "linear" else None
    known = Known(embeddings, mel_rows(labelled.clips) if len(labelled.clips) <= _MOST_MEASURED else None)
    found = []
    for fold, divided in zip(tested, sets, strict=True):
        place = folder / f"fold-{fold}" if classify.folds else folder
        part = train_part(config, divided, known, place, resume=checkpoint is not None)
        if part is None:
            log.info("interrupted; %s", how_to_resume(folder))
            return 130
        found.append(part)
    if classify.folds and getattr(rank_zero_only, "rank", 0) == 0:
        pooled_report(found, tested, sets, folder, time.monotonic() - started)
    return 0


def train_part(config: Config, labelled: LabelledSet, known: Known, folder: Path, resume: bool) -> dict | None:
    """Train on one division of the set and report on its test part; None where it was interrupted."""
    classify = config.classify
    assert classify is not None
    started = time.monotonic()
    config = replace(config, name=folder.name if not classify.folds else f"{folder.parent.name}-{folder.name}")
    last = folder / "checkpoints" / "last.ckpt"
    last_there = last if resume and last.exists() else None
    model = make_classifier(config, labelled, last_there)
    data = LabelledData(labelled, config.data, config.seed, classify.balanced == "sampling")
    rows = {name: part.rows for name, part in labelled.parts.items()}
    if known.embeddings is not None:
        data.embeddings = {name: [known.embeddings[row] for row in chosen] for name, chosen in rows.items()}
    about = describe_run(config, {"encoder": model.encoder.architecture, "classifier": model.settings})
    checkpoints = Checkpoints(folder / "checkpoints", 10**9, config.trainer.save_best, about)
    trainer = make_trainer(config, folder, checkpoints, about)
    model.encoder.to(trainer.strategy.root_device)
    if not last_there:
        train = labelled.parts["train"]
        embedded = data.embeddings["train"] if data.embeddings else embed(model, train.clips)
        start_head(model, train, embedded, classify)
    if classify.lora_rank:
        add_adapters(model.encoder, classify.lora_rank, config.seed)
    module = make_module(config, model, labelled, data.batch_size)
    if getattr(rank_zero_only, "rank", 0) == 0:
        folder.mkdir(exist_ok=True)
        write_splits(labelled, folder / "splits.csv")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last_there, weights_only=True if last_there else None)
        trainer.strategy.barrier()
        best = checkpoints.best()[0]
        remove_adapters(module)
        module.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        trainer.test(module, datamodule=data, verbose=False)
        if not trainer.is_global_zero:
            return {}
        mel = {name: known.mel[chosen] for name, chosen in rows.items()} if known.mel is not None else None
        return write_report(module, labelled, mel, folder, best, time.monotonic() - started)
    except (KeyboardInterrupt, SystemExit):
        return None
    finally:
        if config.tracking.wandb:
            wandb.finish()


def test_classifier(config: Config, checkpoint: str | None) -> int:
    """Report of a trained classifier on the test part of the set that the settings name."""
    path = checkpoint_to_resume(config.runs_folder, config.name, checkpoint or "auto")
    if path is None:
        raise UserError(f"{config.runs_folder}/{config.name} has no checkpoint; give one with --checkpoint PATH")
    started = time.monotonic()
    config.trainer.devices = config.trainer.num_nodes = 1
    model = load_classifier(path)
    labelled = read_set(config)
    assert config.classify is not None
    folds = find_folds(labelled, config.classify.folds, config.seed)
    divided = divide(labelled, config.seed, folds, config.classify.test_fold)
    same_classes(model.class_names, divided.class_names, path)
    folder = free_folder(config.runs_folder, f"{config.name}-test")
    start_folder(folder, config)
    data = LabelledData(divided, config.data, config.seed)
    module = make_module(config, model, divided, data.batch_size)
    config.tracking.wandb = None
    trainer = make_trainer(config, folder, None, {})
    trainer.test(module, datamodule=data, verbose=False)
    write_report(module, divided, None, folder, path, time.monotonic() - started)
    return 0


def read_set(config: Config) -> LabelledClips:
    classify, data = config.classify, config.data
    assert classify is not None
    multi = {"auto": None, "single": False, "multi": True}[classify.task]
    labelled = read_labelled(data.sources, data.validation, data.test, multi, data.cache_gigabytes)
    if classify.level == "frame":
        without = next((clip for clip in labelled.clips if not clip.annotation.events), None)
        if without:
            raise UserError(
                f"classify.level=frame, but of {without.key} no times are known; give labels.csv the columns onset and "
                "offset (seconds)"
            )
        return replace(labelled, multi=True)
    return labelled


def same_classes(of_checkpoint: list[str], of_set: list[str], path: Path) -> None:
    """Raises UserError: other classes than the checkpoint's."""
    if of_checkpoint != of_set:
        missing, new = sorted(set(of_checkpoint) - set(of_set)), sorted(set(of_set) - set(of_checkpoint))
        raise UserError(
            f"{path} has other classes than the set: only in the checkpoint {', '.join(missing) or 'none'}; "
            f"only in the set {', '.join(new) or 'none'}"
        )


def make_classifier(config: Config, labelled: LabelledSet, checkpoint: Path | None) -> AudioClassifier:
    """Its encoder is that of `model.init_from`, or a new one whose batch norm has seen some of the training clips.

    checkpoint: of this run, if it goes on.
    """
    classify, model = config.classify, config.model
    assert classify is not None
    if checkpoint:
        same_classes(load_classifier(checkpoint).class_names, labelled.class_names, checkpoint)
    if model.init_from:
        encoder: AudioViT = load_encoder(
            model.init_from, drop_path=model.drop_path, gradient_checkpointing=model.gradient_checkpointing
        )
    else:
        encoder = create_encoder(
            model.size, model.drop_path, model.layer_scale, model.gradient_checkpointing, config.seed
        )
        calibrate_norm(encoder, read_some(labelled.parts["train"], 256))
        encoder.eval()
    pooling = None if classify.level == "frame" else classify.pooling
    return AudioClassifier(encoder, labelled.class_names, classify.layer, pooling, labelled.multi)


def read_some(part: LabelledPart, most: int) -> list[np.ndarray]:
    """Up to `most` clips, evenly over the part, 10 s of each at most."""
    chosen = np.linspace(0, len(part) - 1, min(most, len(part))).astype(int).tolist()
    return [read(part.clips[i], 10.0) for i in chosen]


def start_head(model: AudioClassifier, train: LabelledPart, embedded: list[Tensor], classify: ClassifyConfig) -> None:
    """Standardize by the train embeddings; for probe_then_finetune set the linear layer by logistic regression."""
    standardise, linear = model.head
    assert isinstance(standardise, Standardize) and isinstance(linear, nn.Linear)
    rows = torch.cat(embedded) if model.pooling is None else torch.stack(embedded)
    standardise.fit(rows)
    if classify.method != "probe_then_finetune":
        return
    targets = train.targets
    if model.pooling is None:
        columns = {name: number for number, name in enumerate(model.class_names)}
        targets = np.concatenate([
            frame_targets(events_of(train, i, columns)[None], model.encoder.token_times(len(tokens)), len(columns))[0]
            for i, tokens in enumerate(embedded)
        ])  # fmt: skip
    scaled = ((rows - standardise.mean.cpu()) / standardise.deviation.cpu()).numpy()
    weight, bias = fit_linear(scaled, targets, model.multi, classify.balanced is not None)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))


def make_module(config: Config, model: AudioClassifier, labelled: LabelledSet, batch_size: int) -> AudioClassification:
    """The module, and in `config.trainer.steps` the optimiser steps of its run."""
    settings, classify = config.trainer, config.classify
    assert classify is not None
    clips = batch_size * settings.devices * settings.num_nodes
    batches = -(-len(labelled.parts["train"]) // clips)
    settings.steps = classify.epochs * -(-batches // settings.accumulate)
    counts = torch.from_numpy(labelled.parts["train"].targets.sum(0))
    clips_per_step = clips * settings.accumulate
    return AudioClassification(model, classify, config.optimizer, counts, clips_per_step, settings.steps, config.seed)


def write_skipped(bad: list[tuple[str, str]], file: Path) -> None:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("name", "reason"), *bad])


def write_splits(labelled: LabelledSet, file: Path) -> None:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("path", "label", "split"))
        for name, part in labelled.parts.items():
            for key, target in zip(part.keys, part.targets, strict=True):
                writer.writerow((key, ";".join(np.array(labelled.class_names)[target > 0]), name))


def make_trainer(config: Config, folder: Path, checkpoints: Checkpoints | None, about: dict[str, Any]) -> L.Trainer:
    settings = config.trainer
    assert config.classify is not None
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return L.Trainer(
        default_root_dir=folder,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy="ddp_find_unused_parameters_true" if settings.devices * settings.num_nodes > 1 else "auto",
        precision=precision(config),
        max_epochs=config.classify.epochs,
        check_val_every_n_epoch=max(1, config.classify.epochs // 20) if config.classify.method == "linear" else 1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=config.optimizer.gradient_clip,
        log_every_n_steps=settings.log_every_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # labelled_data.py deals the clips out, each once in validation and test
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,  # callbacks/checkpoints.py saves
        callbacks=[checkpoints] if checkpoints else [],
        logger=make_loggers(config, folder, about) if checkpoints else False,
        plugins=[AtomicCheckpointIO()],
    )
