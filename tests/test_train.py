"""The command line: help, mistakes and their exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.train import join_overrides, main
from tests.training.sources import write_sources

QUICKSTART = ["--config", "configs/quickstart.yaml"]
BAD = Path(__file__).parents[2] / "shared" / "audio" / "bad"
FOLDER = ["data.sources=[{kind: folder, path: PLACE}]", "data.validation=null", "check.train=null",
          "trainer.max_steps=2", "data.batch_size=4", "tracking.wandb=null"]  # fmt: skip


def folder_overrides(place):
    return [override.replace("PLACE", f"'{place}'") for override in FOLDER]


@pytest.mark.parametrize(
    "words", [["--help"], ["fit", *QUICKSTART, "--print-config"], ["fit", *QUICKSTART, "modl.size=base"]]
)
def test_help_settings_and_mistakes_answer_before_anything_heavy_is_imported(words):
    code = f"""
import sys
from src.train import main
try:
    main({words!r})
except SystemExit as stop:
    assert stop.code == 0
heavy = {{"torch", "lightning", "timm", "datasets", "numpy", "wandb", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_commands_and_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("validate", "data.crop_seconds", "optimizer.lr", "tracking.wandb", "--resume"):
        assert word in text


def test_overrides_in_both_spellings():
    assert join_overrides(["--trainer.max_steps", "5", "a=1", "--b=2"]) == ["trainer.max_steps=5", "a=1", "--b=2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["fit"], "data.sources is empty"),
        (["fit", *QUICKSTART, "trainer.stepz=3"], "trainer.max_steps"),
        (["fit", *QUICKSTART, "--trainer.max_steps"], "has no value"),
        (["fit", *QUICKSTART, "trainer.max_steps=many"], "trainer.max_steps"),
        (["fit", *QUICKSTART, *folder_overrides("/no/such/folder")], "there is no folder /no/such/folder"),
        (["fit", *QUICKSTART, *folder_overrides("configs")], "configs holds no audio files"),
        (["fit", *QUICKSTART, "data.sources.0.audio_column=sound"], "audio_column=sound is not a column"),
        (["fit", *QUICKSTART, "data.sources.0.split=trian"], "trian"),
        (["fit", *QUICKSTART, "check.train.label_column=lable"], "did you mean label?"),
        (["fit", *QUICKSTART, "--resume", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["fit", *QUICKSTART, "--resume", "README.md"], "not a complete checkpoint"),
        (["validate", *QUICKSTART], "--checkpoint"),
        (["fit", "--config", "configs/pretrain/base.yaml", "--config", "configs/data/folder.yaml"], "data.path"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments, words, capsys, tmp_path):
    assert main([arguments[0], f"runs_folder={tmp_path}", *arguments[1:]]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and words in message and "Traceback" not in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())  # not even an empty run folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_hardware_that_is_not_there_is_one_sentence(capsys, tmp_path):
    assert main(["fit", *QUICKSTART, "trainer.accelerator=gpu", f"runs_folder={tmp_path}"]) == 2
    assert "trainer.accelerator" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission_is_one_sentence(capsys, tmp_path):
    tmp_path.chmod(0o500)
    assert main(["fit", *QUICKSTART, f"runs_folder={tmp_path}/runs"]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.skipif(not BAD.exists(), reason="needs the hostile files of ../shared/audio/bad")
def test_hostile_files_are_skipped_listed_once_and_too_many_are_an_error(capsys, tmp_path):
    arguments = ["fit", *QUICKSTART, *folder_overrides(BAD), f"runs_folder={tmp_path}", "name=bad"]
    assert main([*arguments, "data.max_bad_share=0.1"]) == 2
    message = capsys.readouterr().err
    assert "data.max_bad_share=0.1" in message and len(message.strip().splitlines()) == 1
    assert main([*arguments, "data.max_bad_share=0.5", "name=read"]) == 0
    listed = (tmp_path / "read/skipped.csv").read_text(encoding="utf-8").splitlines()
    names = [line.split(",")[0] for line in listed[1:]]
    assert len(names) == len(set(names))
    for name in ("empty.wav", "text.wav", "truncated_header.wav", "zero_samples.wav", "all_nan.wav", "one_nan.wav",
                 "inf.wav", "zero_rate.wav", "noise_bytes.flac", "truncated.flac"):  # fmt: skip
        assert name in names
    assert not {"silence.wav", "8_channels.wav", "really_mp3.wav", "192000_51.wav", "1_sample.wav"} & set(names)


def test_our_warnings_reach_the_terminal_and_those_of_libraries_do_not(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way of the cache folder")
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", str(tmp_path / "file" / "cache"))
    place = tmp_path / "clips"
    write_sources(tmp_path)
    arguments = [*folder_overrides(place), "data.cache_gigabytes=0", "--plan"]
    assert main(["fit", *QUICKSTART, *arguments]) == 0
    text = capsys.readouterr().out
    assert "warning: " in text and "cannot be written" in text and "LeafSpec" not in text
