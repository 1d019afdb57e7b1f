"""Weights & Biases and TensorBoard: loggers of a run, axes and best values, artifacts with lineage, alerts."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from src.config.settings import Config
from src.errors import UserError
from src.training.run_folder import checkpoint_of, read_run

log = logging.getLogger("src")
HOURS = "train/audio_hours"  # the x-axis of what probes score during pretraining; steps are that of everything else
BEST = {"val/loss": "min", "val/accuracy": "max", "val/f1": "max", "val/map": "max", "check/knn": "max",
        "check/linear": "max"}  # fmt: skip


def make_loggers(config: Config, folder: Path, name: str, wandb_id: str) -> list[Logger]:
    """The loggers that `tracking` asks for.

    Args:
        folder: the run folder, of one fold in cross-validation; folds are a group.
        wandb_id: id of the W&B run, which a resumed run continues.
    """
    tracking, loggers = config.tracking, list[Logger]()
    if tracking.tensorboard:
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    if tracking.wandb:
        import wandb

        fold = folder.name.startswith("fold-")
        loggers.append(
            WandbLogger(  # mode, as offline=True sets WANDB_MODE for what comes later in this process
                project=tracking.project,
                name=tracking.name or (name if fold else folder.name),
                id=wandb_id,
                resume="allow",
                save_dir=folder,
                mode="offline" if tracking.wandb == "offline" else None,
                config=asdict(config),
                entity=tracking.entity,
                group=tracking.group or (folder.parent.name if fold else None),
                tags=tracking.tags,
                notes=tracking.notes,
                job_type=tracking.job_type or ("pretrain" if config.classify is None else "classify"),
                settings=wandb.Settings(silent=tracking.wandb == "offline"),
            )
        )
    return loggers


def sweep_id() -> str | None:
    """The id that an agent of a W&B sweep has given to this run."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def check_tracking(config: Config) -> None:
    """
    Raises:
        UserError: TensorBoard is not installed, or W&B cannot be reached.
    """
    if config.tracking.tensorboard:
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise UserError(
                "tracking.tensorboard=true, but TensorBoard is not installed; pip install 'audio-encoder[tensorboard]'"
            ) from None
    if config.tracking.wandb == "online":
        check_online()


def check_online(timeout_seconds: int = 15, setting: str = "tracking.wandb") -> None:
    """Check that W&B has a key and answers; nothing is asked if the environment (WANDB_MODE) turns it off.

    Raises:
        UserError: it has none, or does not.
    """
    import wandb

    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return
    try:
        reason = "" if wandb.login(prompt=False, verify=True, timeout=timeout_seconds) else "there is no API key"
    except (wandb.Error, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason:
        raise UserError(
            f"{setting}=online, but W&B cannot be used: {reason}; run wandb login, or set {setting}=offline "
            "and upload later with wandb sync RUN_FOLDER/wandb/offline-run-*"
        )


def start_wandb(loggers: Sequence[Logger], init_from: str | None) -> None:
    """Define axes and best values, and record the run whose encoder is used. Call it on rank 0."""
    for run in wandb_runs(loggers):
        for name, best in BEST.items():
            run.define_metric(
                name, step_metric=HOURS if name.startswith("check/") else "trainer/global_step", summary=f"{best},last"
            )
        use_models(run, [init_from] if init_from else [])


def use_models(run: Any, paths: Sequence[str]) -> None:
    """Declare the checkpoints `paths` as inputs of a W&B run: by artifact, and as `inputs` in its config.

    An offline run can only have the latter, as can one whose inputs were not uploaded (`tracking.log_model`).
    """
    inputs = {path: name for path in paths if (name := model_name(path))}
    run.config.update({"inputs": inputs}, allow_val_change=True)
    for path, name in inputs.items():
        if run.offline:
            continue
        try:
            run.use_artifact(f"{name}:latest", type="model")
        except Exception as error:  # W&B raises several kinds; a run is not lost for its lineage
            log.warning("W&B has no artifact %s of %s (%s); lineage is left out", name, path, error)


def model_name(path: str) -> str | None:
    """Name of the artifact of a checkpoint or run folder; None for an encoder that is of no run, such as a release."""
    try:
        wandb_id = read_run(checkpoint_of("", "", path)).get("wandb_id")
    except UserError:
        return None
    return f"model-{wandb_id}" if wandb_id else None


def log_model(loggers: Sequence[Logger], checkpoints: set[Path], splits: Path) -> None:
    """Upload checkpoints as an artifact of type model, and the list of splits, if there is one, as a dataset."""
    import wandb

    for run in wandb_runs(loggers):
        model = wandb.Artifact(f"model-{run.id}", type="model")
        for path in checkpoints:
            add = model.add_dir if path.is_dir() else model.add_file
            add(str(path), name=path.name)
        run.log_artifact(model)
        if splits.exists():
            dataset = wandb.Artifact(f"splits-{run.id}", type="dataset")
            dataset.add_file(str(splits), name=splits.name)
            run.log_artifact(dataset)


def alert(loggers: Sequence[Logger], title: str, text: str) -> None:
    """Have W&B send a message (mail or Slack, as the user's W&B settings say); an offline run sends it when synced."""
    for run in wandb_runs(loggers):
        run.alert(title, text, level="WARN")


def wandb_runs(loggers: Sequence[Logger]) -> list[Any]:
    """The W&B runs among loggers; on other processes than the first their methods do nothing."""
    return [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
