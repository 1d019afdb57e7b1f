"""What W&B and TensorBoard get, read back from offline runs."""

import json
import os
import sys

import pytest
import soundfile
import wandb
from lightning.pytorch.loggers import WandbLogger

from src import train
from src.config.settings import Config, TrackingConfig
from src.training.tracking import alert, make_loggers, model_name
from tests.training.wandb_records import items, of_kind

TINY = ["trainer.max_steps=2", "trainer.threads=1", "data.batch_size=4", "optimizer.warmup_steps=1",
        "check.max_clips=26", "check.layer=null", "trainer.log_every_n_steps=1", "trainer.val_check_interval=1",
        "trainer.limit_val_batches=1"]  # fmt: skip


@pytest.fixture(scope="module")
def place(two_blocks, tmp_path_factory, clips):
    """Offline runs of a pretraining and of a classifier of its encoder, on 36 clips in two folders."""
    folder = tmp_path_factory.mktemp("tracking")
    for number, clip in enumerate(clips[:36]):
        (folder / f"sounds/kind{number % 2}").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"sounds/kind{number % 2}/{number:02}.wav", clip.numpy(), 16000)
    runs = [f"runs_folder={folder}", "tracking.wandb=offline", "tracking.tensorboard=true", "tracking.log_model=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        assert train.main(["fit", "--config", "configs/quickstart.yaml", "name=mae", *TINY, *runs]) == 0
        words = ["name=probe", f"model.init_from={folder}/mae", f"data.path={folder}/sounds", "trainer.max_epochs=2"]
        preset = ["fit", "--config", "configs/classify/linear.yaml", "trainer.check_val_every_n_epoch=1"]
        assert train.main([*preset, *words, "optimizer.lr=0", *runs]) == 0
    return folder


def test_axes_and_best_values(place):
    defined = {each.name: each for each in of_kind(place / "mae", "metric")}
    assert defined["check/knn"].step_metric == "train/audio_hours" and defined["check/knn"].summary.max
    assert defined["val/loss"].step_metric == "trainer/global_step" and defined["val/loss"].summary.min
    assert "max" in json.loads(items(place / "mae", "summary")["check/knn"])


def test_the_config_is_complete_and_names_the_inputs(place):
    (run,) = of_kind(place / "probe", "run")
    config = {each.key: json.loads(each.value_json) for each in run.config.update}
    assert config["data"]["path"] == f"{place}/sounds" and config["optimizer"]["lr"] == 0 and config["classify"]
    assert run.job_type == "classify"
    inputs = json.loads(items(place / "probe", "config")["inputs"])
    (logged,) = [each.name for each in of_kind(place / "mae", "artifact") if each.type == "model"]
    assert inputs == {f"{place}/mae": logged} and model_name("dasheng-base") is None


def test_checkpoints_and_splits_are_artifacts(place):
    files = {each.type: {entry.path for entry in each.manifest.contents}
             for each in of_kind(place / "probe", "artifact")}  # fmt: skip
    assert "last.ckpt" in files["model"] and files["dataset"] == {"splits.csv"}


def test_pictures_have_captions(place):
    history = items(place / "mae", "history")
    assert "step 2; log-mel target" in history["reconstruction.captions"]


def test_a_classifier_has_charts_tables_and_players(place):
    run = place / "probe"
    assert {"test/predictions", "test/mistakes"} <= {key.rpartition(".")[0] for key in items(run, "history")}
    charts = " ".join(items(run, "config"))
    assert "visualize.test/confusion" in charts and "visualize.test/precision_recall" in charts
    (file,) = run.rglob("media/table/test/predictions_*.json")
    table = json.loads(file.read_text())
    found = json.loads((run / "report.json").read_text())
    assert len(table["data"]) == found["clips"] and table["columns"][:2] == ["path", "label"]
    paths = [entry.path for each in of_kind(run, "artifact") for entry in each.manifest.contents]
    assert len({path for path in paths if path.endswith(".wav")}) == len(found["mistakes"]) > 0


def test_system_figures_are_kept(place):
    assert of_kind(place / "mae", "stats")


def test_tensorboard_has_scalars_and_pictures(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / "mae/tensorboard"))
    events.Reload()
    assert "train/loss" in events.Tags()["scalars"] and events.Tags()["images"] == ["reconstruction"]


def test_tensorboard_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    words = ["fit", "--config", "configs/quickstart.yaml", f"runs_folder={tmp_path}", "tracking.tensorboard=true"]
    assert train.main(words) == 2
    assert "pip install 'audio-encoder[tensorboard]'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_alert_waits_in_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.finish()  # a run that another test left open would be taken
    logger = WandbLogger(save_dir=tmp_path, mode="offline")
    alert([logger], "bad step", "step 3 is skipped")
    logger.experiment.finish()
    assert [(each.title, each.text) for each in of_kind(tmp_path, "alert")] == [("bad step", "step 3 is skipped")]


def test_an_offline_run_asks_for_no_key_whatever_was_run_before_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.finish()
    wandb.setup()  # reads the environment once
    (logger,) = make_loggers(Config(tracking=TrackingConfig(wandb="offline")), tmp_path, "a", "0123abcd")
    logger.experiment.finish()
    assert list(tmp_path.glob("wandb/offline-run-*")) and os.environ["WANDB_MODE"] == "online"
