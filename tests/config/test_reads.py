"""Every setting reaches the code: a run of each kind reads it, or refuses it (more closely: test_effects.py)."""

import dataclasses
import sys

import pytest

from src.classification import run as classification
from src.config import settings
from src.config.checks import NOT_FOR_CLASSIFICATION, NOT_FOR_LINEAR, NOT_FOR_PRETRAINING
from src.config.files import SECTIONS, load_config
from src.encoders.save import save_encoder
from src.models.initialize import initialize
from src.models.vit import AudioViT
from src.pretraining import run as pretraining

DEMO = "kind: huggingface, path: data/demo, split: validation"
COMMON = ["trainer.threads=1", "data.batch_size=16", "tracking.wandb=offline", "trainer.max_time=00:01:00:00",
          "data.crop_seconds=1.0", "checkpoint.train_time_interval=00:01:00:00"]  # fmt: skip
PRETRAIN = [f"data.sources=[{{{DEMO}}}]", "trainer.max_steps=1", "check.max_clips=40", "trainer.val_check_interval=1",
            f"check.test={{{DEMO}, label_column: label}}", f"check.train={{{DEMO}, label_column: label}}"]  # fmt: skip
CLASSIFY = [f"data.sources=[{{{DEMO}, label_column: label}}]", "trainer.max_epochs=1", "data.test=null",
            "trainer.check_val_every_n_epoch=1",
            "data.validation=null"]  # fmt: skip
INTERPOLATED = {"data.path"}  # stands in other settings only: `${data.path}`
OF_ENCODERS = {"model.size", "model.layer_scale"}  # refused together with model.init_from
OF_SOURCES = {"data.sources.N.weight", "callbacks.N.class_path", "callbacks.N.init_args"}  # no list, no entries
SERIALIZERS = ("omegaconf", "dataclasses", "src.config.checks", "src.training.resume")  # look at all of them


@pytest.fixture
def reads(monkeypatch):
    """Names of the settings that are read, by class; reads by what checks or writes all of them don't count."""
    found: dict[type, set[str]] = {}

    def watch(cls):
        plain = cls.__getattribute__

        def read(self, name):
            if not sys._getframe(1).f_globals.get("__name__", "").startswith(SERIALIZERS):
                found.setdefault(cls, set()).add(name)
            return plain(self, name)

        monkeypatch.setattr(cls, "__getattribute__", read)

    for cls in SECTIONS.values():
        watch(cls)
    return found


def not_read(found: dict[type, set[str]]) -> set[str]:
    keys = {f"{section}.{field.name}".lstrip("."): (cls, field.name)
            for section, cls in SECTIONS.items() for field in dataclasses.fields(cls)}  # fmt: skip
    return {key for key, (cls, name) in keys.items() if name not in found.get(cls, ())}


def test_pretraining_reads_all_that_it_does_not_refuse(tmp_path, reads):
    own = (
        "callbacks=[{class_path: lightning.pytorch.callbacks.LearningRateMonitor, init_args: {logging_interval: step}}]"
    )
    config = load_config(["configs/quickstart.yaml"], [*COMMON, f"runs_folder={tmp_path}", own, *PRETRAIN])
    assert pretraining.fit(config) == 0
    assert pretraining.evaluate(config, "test", None) == 0
    missing = {key for key in not_read(reads) if not key.startswith("classify")}
    assert missing == {*INTERPOLATED, *NOT_FOR_PRETRAINING}


@pytest.mark.parametrize("method", ["linear", "finetune"])
def test_a_classifier_reads_all_that_it_does_not_refuse(tmp_path, reads, method):
    encoder = AudioViT(48, 2, 3)
    initialize(encoder, 0, "encoder")
    save_encoder(encoder, tmp_path / "encoder")
    place = [f"model.init_from={tmp_path / 'encoder'}", f"runs_folder={tmp_path / 'runs'}"]
    config = load_config([f"configs/classify/{method}.yaml"], [*COMMON, *place, *CLASSIFY])
    assert classification.fit(config) == 0
    refused = {*NOT_FOR_CLASSIFICATION, *(NOT_FOR_LINEAR if method == "linear" else ())}
    left_out = {"check", "objective"}  # refused key by key
    left_out |= {"data.crop_seconds", "classify.augment"} if method == "linear" else set()
    assert not_read(reads) - refused <= {*INTERPOLATED, *left_out, *OF_ENCODERS, *OF_SOURCES}


def test_settings_are_all_dataclasses():
    assert all(dataclasses.is_dataclass(cls) for cls in SECTIONS.values()) and settings.Config in SECTIONS.values()
