"""Classifiers through the command line: a newcomer's folder, fine-tuning, several labels, predictions, refusals."""

import csv
import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from src import export, train
from src.classification.augment import SpecAugment, add_noise, augment, gain, mixup, shift
from src.classification.predict import segments
from src.config.settings import AugmentConfig
from src.encoders.load import load_classifier
from src.encoders.save import save_encoder
from src.models.initialize import initialize
from src.models.vit import AudioViT

ROOT = Path(__file__).parents[2]
FAST = ["trainer.threads=1", "trainer.max_epochs=3", "classify.pooling=mean"]


def small_encoder() -> AudioViT:
    encoder = AudioViT(48, 2, 3)
    initialize(encoder, 0, "encoder")
    encoder.init_bn.running_mean.fill_(-30)
    encoder.init_bn.running_var.fill_(200)
    return encoder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small encoder, and 40 demo clips in two class folders."""
    folder = tmp_path_factory.mktemp("classify")
    save_encoder(small_encoder(), folder / "encoder")
    table = pq.read_table(next((ROOT / "data/demo/data").glob("train-*.parquet")))
    labels = table.column("label").to_pylist()
    for name, number in (("one", labels[0]), ("two", next(each for each in labels if each != labels[0]))):
        chosen = [row for row, label in zip(table.column("audio").to_pylist(), labels, strict=True) if label == number]
        (folder / "sounds" / name).mkdir(parents=True)
        for i, row in enumerate(chosen[:20]):
            samples, rate = soundfile.read(io.BytesIO(row["bytes"]))
            soundfile.write(folder / "sounds" / name / f"{i:02}.wav", samples, rate)
    return folder


def fit(place, preset, *overrides) -> int:
    files = ["fit", "--config", str(ROOT / f"configs/classify/{preset}.yaml")]
    settings = [f"model.init_from={place / 'encoder'}", f"runs_folder={place / 'runs'}", *FAST]
    return train.main([*files, f"data.path={place / 'sounds'}", *settings, *overrides])


@pytest.fixture(scope="module")
def linear(place):
    assert fit(place, "linear", "name=linear", "trainer.max_epochs=30", "classify.layer=0,1,last") == 0
    return place / "runs/linear"


def test_a_folder_of_class_folders_becomes_a_classifier_with_a_report(linear, place):
    report = json.loads((linear / "report.json").read_text())
    low, high = report["intervals"]["accuracy"]
    assert low <= report["scores"]["accuracy"] <= high and report["scores"]["accuracy"] > report["floors"]["majority"]
    assert [each["name"] for each in report["classes"]] == ["one", "two"]
    assert np.array(report["confusion"]).sum() == report["clips"] == sum(each["clips"] for each in report["classes"])
    with open(linear / "splits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["path"] for row in rows}) == len(list((place / "sounds").rglob("*.wav")))
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
    assert "with seed 0" in (linear / "log.txt").read_text()


def test_the_checkpoint_is_the_classifier_that_was_tested(linear):
    """Its probabilities are those of predictions.csv; as an export too."""
    assert export.main([str(linear), "--out", str(linear / "export")]) == 0
    for path in (next((linear / "checkpoints").glob("step=*.ckpt")), linear / "export"):
        model = load_classifier(path)
        with open(linear / "predictions.csv", newline="") as file:
            for row in csv.DictReader(file):
                samples, _ = soundfile.read(row["path"], dtype="float32")
                with torch.no_grad():
                    chance = model.probabilities(model(torch.from_numpy(samples)[None]))[0]
                assert model.class_names[int(chance.argmax())] == row["label_1"]
                assert float(chance.max()) == pytest.approx(float(row["probability_1"]), abs=2e-3)
        if path.suffix == ".ckpt":
            assert model.class_names == ["one", "two"]


def test_predict_new_audio_long_files_as_a_timeline(linear, place, capsys):
    new = place / "new"
    new.mkdir()
    first = sorted((place / "sounds/one").iterdir())[0]
    samples, rate = soundfile.read(first)
    soundfile.write(new / "long.wav", np.resize(samples, 31 * rate), rate)
    soundfile.write(new / "rest.wav", np.resize(samples, round(10.2 * rate)), rate)
    (new / "broken.wav").write_bytes(b"RIFF")
    arguments = ["predict", "--config", str(linear / "config.yaml"), f"data.test.path={new}"]
    assert train.main(arguments) == 1
    with open(linear / "predictions-new.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [(Path(row["path"]).name, float(row["start_seconds"])) for row in rows]
    assert parts == [("long.wav", 0), ("long.wav", 10.32), ("long.wav", 20.68), ("rest.wav", 0)]
    assert rows[0]["label_1"] in ("one", "two") and "broken.wav" in capsys.readouterr().err
    assert "broken.wav" in (linear / "predictions-new.skipped.csv").read_text()


def test_predict_takes_any_kind_of_path_and_overwrites_nothing(linear, place, tmp_path, monkeypatch, capsys):
    """data.test was a dataset; results of a checkpoint outside a run go to the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((linear / "checkpoints").glob("step=*.ckpt")), tmp_path / "model.ckpt")
    words = ["predict", "--config", str(linear / "config.yaml"), "data.test={kind: huggingface, path: x}"]
    words += ["--checkpoint", str(tmp_path / "model.ckpt")]
    for path, name in ((place / "sounds/one", "predictions-new"), (place / "sounds/one/00.wav", "predictions-new-2")):
        assert train.main([*words, f"data.test.path={path}"]) == 0
        assert f"rows: {name}.csv" in capsys.readouterr().out and (tmp_path / f"{name}.csv").is_file()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.wav").write_bytes(b"RIFF")
    assert train.main([*words, f"data.test.path={tmp_path / 'bad'}"]) == 2
    assert "there are no predictions" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {
        "model.ckpt", "bad", "predictions-new.csv", "predictions-new-2.csv", "predictions-new-3.skipped.csv",
    }  # fmt: skip


@pytest.mark.parametrize("seconds", [0.05, 9.9, 10.02, 10.2, 14.9, 15.1, 25.0, 3600.1, 100_000.0])
def test_parts_of_a_clip_are_equal_and_leave_no_rest(seconds):
    parts = segments(seconds, 0.04)
    assert len(parts) == max(1, round(seconds / 10)) and parts[0][0] == 0
    assert all(start + length == pytest.approx(after) for (start, length), (after, _) in itertools.pairwise(parts))
    assert sum(parts[-1]) == pytest.approx(seconds)
    assert all(abs(length - seconds / len(parts)) <= 0.04 + 1e-6 for _, length in parts)
    assert all(round(start / 0.04, 6).is_integer() for start, _ in parts)


@pytest.mark.parametrize("preset", ["linear", "finetune"])
def test_frozen_stays_frozen_and_fine_tuning_moves_all(place, preset):
    assert fit(place, preset, f"name=moved-{preset}") == 0
    state = torch.load(next((place / f"runs/moved-{preset}/checkpoints").glob("last.ckpt")), weights_only=True)[
        "state_dict"
    ]
    before = {f"model.encoder.{name}": v for name, v in small_encoder().state_dict().items()}
    moved = {name for name, value in before.items() if not torch.equal(value, state[name])}
    if preset == "linear":
        assert not moved
    else:  # the statistics of the batch norm stay those of pretraining
        assert {name for name in before if "init_bn.running" not in name and "num_batches" not in name} == moved


@pytest.mark.slow
def test_from_scratch_and_several_labels(place, tmp_path):
    names = [f"{each.parent.name}/{each.name}" for each in sorted((place / "sounds").rglob("*.wav"))]
    (tmp_path / "labels.csv").write_text(
        "filename,label\n" + "\n".join(f"{name},{'one;loud' if i % 3 else 'two'}" for i, name in enumerate(names))
    )
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for file in (place / "sounds" / folder).iterdir():
            (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    scratch = ["model.init_from=null", "classify.method=finetune", "classify.augment.mixup=0.3"]
    assert fit(place, "finetune", "name=multi", f"data.path={tmp_path}", *scratch) == 0
    report = json.loads((place / "runs/multi/report.json").read_text())
    assert set(report["scores"]) == {"map", "f1"} and load_classifier(place / "runs/multi").multi


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["classify.task=maybe"], "expected one of"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0 is out of range"),
        (["classify.layr=3"], "did you mean classify.layer"),
        (["classify.layer=0,9"], "classify.layer=9 is not a block; use 0 (the patch embedding) to 2, or last"),
        (["data.path=configs"], "holds no audio"),
        (["data.path={place}/sounds/one"], "has no labels"),
        (["model.init_from={place}/none.pt"], "there is no checkpoint"),
    ],
)
def test_mistakes_end_in_one_sentence(place, capsys, overrides, words):
    before = sorted((place / "runs").iterdir()) if (place / "runs").exists() else []
    assert fit(place, "linear", *(each.format(place=place) for each in overrides)) == 2
    said = capsys.readouterr().err
    assert words in said and said.strip().count("\n") == 0, said
    assert (sorted((place / "runs").iterdir()) if (place / "runs").exists() else []) == before


def test_each_augmentation_changes_its_input_and_only_that(clips):
    torch.manual_seed(0)
    length = torch.tensor([len(clips[0]), len(clips[1])])
    waveform = torch.nn.utils.rnn.pad_sequence(clips[:2], batch_first=True)
    target = torch.eye(2)
    real = torch.arange(waveform.shape[1]) < length[:, None]
    louder = gain(waveform, 6.0)
    ratio = (louder.abs().amax(1) / waveform.abs().amax(1)).log10() * 20
    assert (ratio.abs() <= 6.001).all() and (ratio != 0).all()
    turned = shift(waveform, length, 4000)
    assert not torch.equal(turned, waveform) and torch.equal(turned.sort(1).values, waveform.sort(1).values)
    noisy = add_noise(waveform, length, 20.0)
    power = ((noisy - waveform).square().sum(1) / waveform.square().sum(1)).log10() * 10
    assert ((power > -51) & (power < -19)).all() and not (noisy * ~real).any()
    mixed, _, shares = mixup(waveform, length, target, 0.4)
    assert torch.allclose(shares.sum(1), torch.ones(2)) and mixed.shape == waveform.shape
    masks, mean = SpecAugment(12, 20), torch.full((64,), -30.0)
    log_mel = torch.ones(2, 64, 100)
    assert (masks(log_mel, mean) == -30).any() and torch.equal(masks.eval()(log_mel, mean), log_mel)
    off = AugmentConfig(gain_db=0, shift_seconds=0, mixup=0, mask_bands=0, mask_frames=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(augment(waveform, length, target, off), (waveform, length, target), strict=True)
    )
