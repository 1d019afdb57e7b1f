"""Files, overrides, interpolation, and the sentence a mistake ends in."""

import dataclasses

import pytest

from src.config.files import SECTIONS, describe_keys, load_config, to_yaml
from src.errors import UserError

QUICKSTART = "configs/quickstart.yaml"


def test_files_merge_from_left_to_right_and_overrides_come_last(tmp_path):
    (tmp_path / "a.yaml").write_text("trainer: {max_steps: 7}\noptimizer: {warmup_steps: 2}\n")
    (tmp_path / "b.yaml").write_text("trainer: {max_steps: 8}\n")
    files = [QUICKSTART, str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    assert load_config(files, []).trainer.max_steps == 8
    assert load_config(files, ["trainer.max_steps=9"]).trainer.max_steps == 9
    assert load_config(files, []).optimizer.warmup_steps == 2


def test_interpolation_follows_overrides(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {path: here, sources: [{kind: folder, path: '${data.path}'}]}\n")
    config = load_config([QUICKSTART, str(tmp_path / "a.yaml")], ["data.path=/my/audio"])
    assert config.data.sources[0].path == "/my/audio"


def test_an_override_reaches_into_lists_and_into_sections_that_were_null():
    overrides = ["data.sources.0.weight=3", "data.test.path=/x", "data.test.kind=folder"]
    config = load_config([QUICKSTART], overrides)
    assert config.data.sources[0].weight == 3.0
    assert config.data.test is not None and config.data.test.path == "/x"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.siz=base", ["model.siz", "model.size"]),
        ("learning_rate=1", ["there is no setting learning_rate"]),
        ("data.sources.0.wait=2", ["wait", "weight"]),
        ("model.size=huge", ["model.size", "huge", "tiny"]),
        ("optimizer.lr=fast", ["optimizer.lr", "fast"]),
        ("data.crop_seconds=12", ["data.crop_seconds=12", "10.08"]),
        ("data.batch_seconds=10", ["data.batch_size", "data.batch_seconds", "both"]),
        ("data.batch_size=null", ["data.batch_size", "neither"]),
        ("objective.mask_ratio=1.5", ["objective.mask_ratio=1.5", "0.99"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas", "two"]),
        ("data.sources=[]", ["data.sources", "configs/data/folder.yaml"]),
        ("trainer.max_steps=0", ["trainer.max_steps=0"]),
        ("steps", ["'steps'", "key=value"]),
        ("trainer.max_time=1h", ["trainer.max_time=1h", "DD:HH:MM:SS"]),
        ("trainer.precision=16-true", ["trainer.precision=16-true", "bf16-mixed"]),
        ("trainer.devices=0,1", ["trainer.devices=0,1", "auto"]),
        ("data.sources.0.path=???", ["data.sources", "path", "not set"]),
    ],
)
def test_a_mistake_is_one_sentence_with_the_key_and_what_to_do(override, words):
    with pytest.raises(UserError) as caught:
        load_config([QUICKSTART], [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_that_is_missing_broken_or_unknown_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_config(["nowhere.yaml"], [])
    broken = tmp_path / "broken.yaml"
    broken.write_text("trainer: {steps: [")
    with pytest.raises(UserError, match=r"broken\.yaml is not a YAML"):
        load_config([str(broken)], [])
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("trainer: {max_step: 4}\n")
    with pytest.raises(
        UserError, match=r"unknown.yaml: there is no setting trainer.max_step; did you mean trainer.max_steps"
    ):
        load_config([QUICKSTART, str(unknown)], [])


def test_what_is_written_reads_back_the_same(tmp_path):
    config = load_config([QUICKSTART], ["data.test={kind: folder, path: x}", "trainer.gradient_clip_val=0.5"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config([str(tmp_path / "config.yaml")], []) == config


def test_every_field_has_its_sentence():
    described = describe_keys()
    for section, cls in SECTIONS.items():
        for field in dataclasses.fields(cls):
            key = f"{section}.{field.name}".lstrip(".")
            assert key in SECTIONS or described[key].endswith("."), key
