"""The settings speak Lightning: its Trainer's arguments by name; what can't be used is refused with the key to use."""

import dataclasses
import inspect
from pathlib import Path

import lightning.pytorch as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from src.config.checks import NOT_FOR_CLASSIFICATION, NOT_FOR_LINEAR, NOT_FOR_PRETRAINING, RANGES, value_of
from src.config.files import describe_keys, load_config
from src.config.renamed import NOT_OFFERED, RENAMED
from src.config.settings import CheckpointConfig, Config, TrackingConfig, TrainerConfig
from src.errors import UserError

QUICKSTART = "configs/quickstart.yaml"
OURS = {"compile", "threads", "skip_bad_steps"}  # of trainer: no argument of Lightning


def names(cls) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def test_the_trainer_takes_lightnings_arguments_or_refuses_them():
    """Held against the installed signature: each of its arguments is offered or refused with a sentence."""
    arguments = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    offered = names(TrainerConfig)
    assert offered - OURS <= arguments and not offered & set(NOT_OFFERED)
    assert (offered - OURS) | set(NOT_OFFERED) == arguments


def test_checkpoint_and_tracking_take_lightnings_names_too():
    assert names(CheckpointConfig) <= set(inspect.signature(ModelCheckpoint.__init__).parameters)
    ours, by_wandb = (
        {"wandb", "tensorboard"},
        {"entity", "group", "tags", "notes", "job_type"},
    )  # of wandb.init, passed through
    assert names(TrackingConfig) - ours - by_wandb <= set(inspect.signature(WandbLogger.__init__).parameters)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_refused_with_its_new_name(tmp_path, old, new):
    section, name = old.split(".")
    (tmp_path / "old.yaml").write_text(f"{section}: {{{name}: 1}}\n")
    for files, overrides in (([QUICKSTART], [f"{old}=1"]), ([QUICKSTART, str(tmp_path / "old.yaml")], [])):
        with pytest.raises(UserError, match=rf"{old} is now {new.split(' ')[0]}"):
            load_config(files, overrides)
    assert new.split(" ")[0] in describe_keys()


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_an_argument_that_is_not_offered_is_refused_with_what_to_do(name):
    with pytest.raises(UserError, match=rf"trainer\.{name} is not available: {NOT_OFFERED[name][:20]}"):
        load_config([QUICKSTART], [f"trainer.{name}=1"])


@pytest.mark.parametrize(
    ("files", "override", "words"),
    [
        ([QUICKSTART], "trainer.check_val_every_n_epoch=2", "has no effect in pretraining"),
        (["configs/classify/linear.yaml"], "objective.mask_ratio=0.5", "has no effect in a classifier"),
        (["configs/classify/finetune.yaml"], "check.layer=3", "has no effect in a classifier"),
        (["configs/classify/finetune.yaml"], "data.gain_db=3", "has no effect in a classifier"),
        (["configs/classify/finetune.yaml"], "data.window_clips=7", "has no effect in a classifier"),
        (["configs/classify/finetune.yaml"], "data.sources.0.weight=2", "weight has no effect in a classifier"),
        (["configs/classify/finetune.yaml"], "trainer.strategy=fsdp", "is for pretraining"),
        (["configs/classify/finetune.yaml"], "model.size=base", "starts from model.init_from"),
        (["configs/classify/linear.yaml"], "classify.augment.mixup=0.3", "with classify.method=linear"),
        (["configs/classify/linear.yaml"], "classify.layer_decay=0.5", "with classify.method=linear"),
    ],
)
def test_a_setting_without_effect_is_refused(files, override, words):
    with pytest.raises(UserError, match=words):
        load_config(files, ["data.path=x", override])


def test_the_settings_of_each_kind_of_run_are_read_back(tmp_path):
    """What a run writes into its folder is not refused when it is resumed."""
    from src.config.files import to_yaml

    for file in [QUICKSTART, *Path("configs/classify").glob("*.yaml")]:
        config = load_config([str(file)], ["data.path=x"])
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert load_config([str(tmp_path / "config.yaml")], []) == config


def test_tables_name_settings_that_exist():
    keys = set(describe_keys())
    tables = {*RANGES, *NOT_FOR_CLASSIFICATION, *NOT_FOR_LINEAR, *NOT_FOR_PRETRAINING}
    assert tables <= keys | {"classify.augment.noise_db"}


@pytest.mark.parametrize("key", RANGES)
def test_values_beyond_the_ranges_are_refused(key):
    low, high = RANGES[key]
    file = "configs/classify/finetune.yaml" if key.startswith("classify") else QUICKSTART
    for value in (low - 1, high * 2 + 1, "nan"):
        if value == float("inf") or (value == "nan" and isinstance(value_of(Config(), key), int)):
            continue
        with pytest.raises(UserError):
            load_config([file], ["data.path=x", f"{key}={value}"])
