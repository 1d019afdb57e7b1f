"""Text settings are text, whatever YAML would make of it: on the command line, in files, and when written and read."""

import random
import typing

import pytest

from src.config.files import SECTIONS, describe_keys, load_config, to_yaml
from src.config.typed_yaml import allows_null
from src.errors import UserError

QUICKSTART = "configs/quickstart.yaml"
ODD = (
    "007", "0042", "1e3", "2024_01_15", "2024-01-15", "12:30", "3.10", "on", "off", "yes", "null", "~", "true", "0x10",
    "rec #2", "a, b", "a: b", "[2024] rec", "{0000..0001}.tar", "@rec", "%rec", "- rec", "'rec'", '"', "", " ",
    "a${b", "${HOME}", "a\\${b}", "a\\\\${b}c\\", "\\", "50 % Vögel", "x=y", "!!int 7", "&a", "*a", "???x", "| x", "\t",
)  # fmt: skip


def random_text(count: int) -> list[str]:
    pick = random.Random(0)
    letters = "ab01 .:,#%'\"\\$${}{}[]!&*|>-_~ü@"
    return ["".join(pick.choices(letters, k=pick.randint(1, 12))) for _ in range(count)]


def test_text_arrives_as_typed_and_is_written_and_read_as_such(tmp_path):
    values = [*ODD, *random_text(100)]
    overrides = [f"data.sources=[{', '.join(['{path: x}'] * len(values))}]"]
    overrides += [f"data.sources.{i}.path={value}" for i, value in enumerate(values)]
    config = load_config([QUICKSTART], overrides)
    assert [source.path for source in config.data.sources] == values
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config([str(tmp_path / "config.yaml")], []) == config


@pytest.mark.parametrize("value", ["007", "1e3", "2024_01_15", "12:30"])
def test_a_file_or_a_list_needs_no_quotes(value, tmp_path):
    (tmp_path / "a.yaml").write_text(f"name: {value}\ndata: {{path: {value}}}\ntracking: {{tags: [{value}, on]}}\n")
    config = load_config([QUICKSTART, str(tmp_path / "a.yaml")], [])
    assert (config.name, config.data.path, config.tracking.tags) == (value, value, [value, "on"])
    config = load_config([QUICKSTART], [f"data.sources=[{{kind: folder, path: {value}, weight: 2}}]"])
    assert (config.data.sources[0].path, config.data.sources[0].weight) == (value, 2.0)


def test_null_is_none_where_it_is_documented(tmp_path):
    config = load_config([QUICKSTART], ["tracking.wandb=null", "data.path=null", "name=null"])
    assert config.tracking.wandb is None and config.data.path is None and config.name == "null"
    (tmp_path / "a.yaml").write_text("name: null\n")
    with pytest.raises(UserError, match="name"):
        load_config([QUICKSTART, str(tmp_path / "a.yaml")], [])
    described = describe_keys()
    for section, cls in SECTIONS.items():
        for name, hint in typing.get_type_hints(cls).items():
            if allows_null(hint):
                assert "null" in described[f"{section}.{name}".lstrip(".")], f"{section}.{name}"


def test_references_to_settings_work_in_overrides_and_numbers_stay_numbers():
    config = load_config([QUICKSTART], ["name=run-${seed}-${x}", "seed=5", "optimizer.lr=1e-3", "trainer.devices=2"])
    assert (config.name, config.optimizer.lr, config.trainer.devices) == ("run-5-${x}", 1e-3, 2)


@pytest.mark.parametrize("override", ["optimizer.lr=[", "trainer.max_steps={a", "optimizer.betas=[0.9, @]"])
def test_what_is_not_yaml_is_one_sentence(override):
    with pytest.raises(UserError, match=override.split("=")[0]) as caught:
        load_config([QUICKSTART], [override])
    assert "\n" not in str(caught.value)
