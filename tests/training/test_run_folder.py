"""Which folder a run gets, which checkpoint a name means, and what a resumed run may change."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from src.config.settings import CheckConfig, ClassifyConfig, Config, ModelConfig, OptimizerConfig, SourceConfig
from src.errors import UserError
from src.training.resume import FIXED, compare_settings
from src.training.run import Run
from src.training.run_folder import (
    checkpoint_of,
    checkpoint_to_resume,
    claim_folder,
    later_starts,
    read_run,
    run_of,
)
from src.training.tracking import check_online


def save(path: Path, age: int = 0, name: str | None = None) -> Path:
    """A checkpoint that says what its run was called at the start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "run": {"config": {}, "name": name}, "global_step": 4}, path)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_a_run_is_never_overwritten(tmp_path):
    assert [claim_folder(str(tmp_path / "runs"), "a").name for _ in range(3)] == ["a", "a-2", "a-3"]


def test_two_starts_at_one_moment_get_two_folders(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda _: claim_folder(str(tmp_path), "a"), range(64)))
    assert len(set(claimed)) == 64 == len(list(tmp_path.iterdir()))


def test_the_second_of_two_that_resume_a_run_is_refused_before_it_writes(tmp_path):
    config = Config(name="a", runs_folder=str(tmp_path))
    path = tmp_path / "a/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "run": {"config": plain(config), "name": "a"}, "global_step": 4}, path)
    with Run(config, "auto") as first:
        first.start("the first")
        with (
            pytest.raises(UserError, match=r"another process is writing to .*/a; wait for it"),
            Run(config, "auto") as b,
        ):
            b.start("the second")
        with Run(config) as other:  # a new run of that name gets its own folder
            other.start("another")
        config.name = "a"
        assert other.folder == tmp_path / "a-2"
        assert (tmp_path / "a/plan.txt").read_text() == "the first\n"
    with Run(config, "auto") as third:
        third.start("the third")
    assert sorted(each.name for each in (tmp_path / "a").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "log.txt",
        "plan.txt",
    ]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to .*runs_folder"):
        claim_folder(str(tmp_path / "file" / "runs"), "a")


def test_auto_takes_the_newest_checkpoint_of_the_run_and_its_later_starts(tmp_path):
    assert checkpoint_to_resume(str(tmp_path), "a", "auto") is None
    for age, run in enumerate(("b", "a-2", "a")):
        save(tmp_path / run / "checkpoints/last.ckpt", age, name=run[0])
    (tmp_path / "a-2/checkpoints/last.ckpt.partial").write_bytes(b"newer, cut off")
    assert checkpoint_to_resume(str(tmp_path), "a", "auto") == tmp_path / "a-2/checkpoints/last.ckpt"
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint_to_resume(str(tmp_path), "a", str(tmp_path / "none.ckpt"))


@pytest.mark.parametrize(
    ("name", "other"), [("enc", "enc-16k"), ("enc", "enc-2x"), ("enc", "enc-02"), ("a[bc]*", "ab"), ("enc", "enc-2")]
)
def test_a_run_never_continues_another(tmp_path, name, other):
    """Newer, and named alike: even `enc-2`, where it was started under that name."""
    own = save(tmp_path / name / "checkpoints/last.ckpt", 10, name)
    save(tmp_path / other / "checkpoints/last.ckpt", 0, other)
    assert checkpoint_to_resume(str(tmp_path), name, "auto") == own
    assert checkpoint_of(str(tmp_path), name, None) == own and not later_starts(str(tmp_path), name)


def test_names_are_taken_as_they_are_written(tmp_path):
    for name in ("a [1]", "a*", "a?b", "ä #%"):
        assert claim_folder(str(tmp_path), name) == tmp_path / name
        path = save(tmp_path / name / "checkpoints/last.ckpt", name=name)
        second = claim_folder(str(tmp_path), name)
        assert second == tmp_path / f"{name}-2"
        assert checkpoint_to_resume(str(tmp_path), name, "auto") == path


def test_best_by_default_and_last_by_one_word(tmp_path):
    last = save(tmp_path / "a/checkpoints/last.ckpt")
    assert checkpoint_of(str(tmp_path), "a", None) == last
    with pytest.raises(UserError, match=r"has no best\.ckpt"):
        checkpoint_of(str(tmp_path), "a", "best")
    best = save(tmp_path / "a/checkpoints/best.ckpt", 10)
    save(tmp_path / "a-2/checkpoints/last.ckpt", name="a")
    assert checkpoint_of(str(tmp_path), "a", None) == checkpoint_of(str(tmp_path), "a", "best") == best
    assert checkpoint_of(str(tmp_path), "a", "last") == last == checkpoint_of(str(tmp_path), "b", str(last))
    assert checkpoint_of(str(tmp_path), "b", str(tmp_path / "a")) == best
    assert [path.name for path in later_starts(str(tmp_path), "a")] == ["a-2"]
    with pytest.raises(UserError, match="there is no checkpoint nowhere"):
        checkpoint_of(str(tmp_path), "a", "nowhere")


def test_the_run_of_a_checkpoint():
    assert run_of(Path("runs/a/checkpoints/last.ckpt")) == Path("runs/a")
    assert run_of(Path("runs/a/fold-2/checkpoints/best.ckpt")) == Path("runs/a")
    assert run_of(Path("models/enc.ckpt")) == Path("models")


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a complete checkpoint"):
        read_run(path)
    assert read_run(save(path))["step"] == 4
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="not a complete checkpoint"):
        read_run(path)


def plain(config: Config) -> dict:
    return OmegaConf.to_container(OmegaConf.structured(config))


PATH = Path("last.ckpt")


def test_what_a_resume_applies_is_listed():
    before = plain(Config())
    assert compare_settings(Config(name="other", runs_folder="elsewhere"), before, PATH) == []
    changed = compare_settings(Config(optimizer=OptimizerConfig(lr=1e-3)), before, PATH)
    assert changed == ["optimizer.lr: 0.0003 in the checkpoint, now 0.001"]


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (Config(seed=2), "seed"),
        (Config(model=ModelConfig(size="base")), "model.size"),
        (Config(model=ModelConfig(init_from="x")), "model.init_from"),
        (Config(model=ModelConfig(dct_patches=True)), "model.dct_patches"),
        (Config(optimizer=OptimizerConfig(name="muon")), "optimizer.name"),
        (Config(check=CheckConfig(train=SourceConfig(path="x"))), "check.train"),
        (Config(check=CheckConfig(layer="3")), "check.layer"),
    ],
)
def test_what_a_resume_would_ignore_is_refused(config, key):
    with pytest.raises(UserError, match=rf"last\.ckpt was trained with {key}.*set it back or start a new run"):
        compare_settings(config, plain(Config()), PATH)


def test_a_classifier_is_compared_too():
    before = Config(classify=ClassifyConfig())
    assert compare_settings(Config(classify=ClassifyConfig(label_smoothing=0.1)), plain(before), PATH)
    with pytest.raises(UserError, match=r"classify\.pooling=mean, but the settings have classify\.pooling=max"):
        compare_settings(Config(classify=ClassifyConfig(pooling="max")), plain(before), PATH)
    with pytest.raises(UserError, match="is from classification, but the settings are for pretraining"):
        compare_settings(Config(), plain(before), PATH)


def test_every_fixed_key_is_a_setting():
    from src.config.files import SECTIONS, describe_keys

    assert set(FIXED) <= set(describe_keys()) | set(SECTIONS)


def test_a_setting_of_another_version_is_not_a_change():
    before = plain(Config())
    before["trainer"]["steps"] = 7
    del before["checkpoint"]
    assert compare_settings(Config(), before, PATH) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"<!DOCTYPE html>", "is a web page"), (b"version https://git-lfs", "run git lfs pull")],
)
def test_a_download_that_is_no_checkpoint_is_named(tmp_path, content, words):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_run(tmp_path / "a.ckpt")


def test_wandb_online_without_a_key_is_one_sentence(monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(UserError, match=r"there is no API key; run wandb login, or set tracking.wandb=offline"):
        check_online()

    def no_network(**_):
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "login", no_network)
    with pytest.raises(UserError, match=r"no route to host.*wandb sync"):
        check_online()
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_online()
