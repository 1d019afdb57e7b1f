"""Classifiers, less common ways: cross-validation, two processes, resume, adapters, events, reports, odd sets."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from src import train
from src.encoders.load import load_classifier, load_encoder
from src.encoders.save import save_encoder
from src.models.initialize import initialize
from src.models.vit import AudioViT

ROOT = Path(__file__).parents[2]
RATE = 16000


def tone(hertz: float, seconds: float, seed: int = 0) -> np.ndarray:
    """A tone in noise, (T,)."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(size=len(time))
    return 0.3 * np.sin(2 * np.pi * hertz * time) + 0.02 * noise


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small encoder, and 33 short clips of two pitches in class folders: uneven for two processes."""
    folder = tmp_path_factory.mktemp("classify")
    encoder = AudioViT(48, 2, 3)
    initialize(encoder, 0, "encoder")
    encoder.init_bn.running_mean.fill_(-30)
    encoder.init_bn.running_var.fill_(200)
    save_encoder(encoder, folder / "encoder")
    for number in range(33):
        name, hertz = (("low", 300), ("high", 2500))[number % 2]
        (folder / "sounds" / name).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"sounds/{name}/{number:02}.wav", tone(hertz, 0.5 + 0.01 * number, number), RATE)
    return folder


def command(place, preset, *overrides) -> list[str]:
    files = ["fit", "--config", str(ROOT / f"configs/classify/{preset}.yaml"), f"data.path={place / 'sounds'}"]
    rest = [f"model.init_from={place / 'encoder'}", f"runs_folder={place / 'runs'}", "trainer.threads=1"]
    return [*files, *rest, "trainer.max_epochs=2", "data.batch_size=8", "classify.pooling=mean", *overrides]


EACH_EPOCH = ["trainer.check_val_every_n_epoch=1"]


def fit(place, preset, *overrides) -> int:
    return train.main(command(place, preset, *overrides))


def rows_of(file: Path) -> list[dict]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.slow
def test_cross_validation_tests_each_clip_once_and_says_mean_and_deviation(place, capsys):
    assert fit(place, "kfold", "name=folds", "classify.folds=3", "trainer.max_epochs=20") == 0
    run = place / "runs/folds"
    found = json.loads((run / "report.json").read_text())
    of_folds = [json.loads((run / f"fold-{n}/report.json").read_text()) for n in (1, 2, 3)]
    accuracies = [each["scores"]["accuracy"] for each in of_folds]
    assert found["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["deviation"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    tested = [row["path"] for row in rows_of(run / "predictions.csv")]
    assert len(tested) == len(set(tested)) == 33 == found["clips"] and found["scores"]["accuracy"] > 0.9
    for n in (1, 2, 3):
        parts = {row["path"]: row["split"] for row in rows_of(run / f"fold-{n}/splits.csv")}
        assert {row["path"] for row in rows_of(run / f"fold-{n}/predictions.csv")} == {
            path for path, part in parts.items() if part == "test"
        }
    assert re.search(r"3 folds: accuracy +\d\.\d+ ± \d", capsys.readouterr().out)


@pytest.mark.slow
def test_one_process_measures_as_two_do_on_an_uneven_set(place):
    """Validation and test: each clip once, whoever reads it; 33 clips in batches of 2."""
    found = {}
    overrides = ["trainer.accelerator=cpu", "trainer.max_epochs=1", "optimizer.lr=0", "data.batch_size=2"]
    assert fit(place, "finetune", "name=on1", *overrides) == 0
    overrides += ["name=on2", "trainer.devices=2"]
    arguments = [sys.executable, "-m", "src.train", *command(place, "finetune", *overrides)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for devices in (1, 2):
        run = place / f"runs/on{devices}"
        rows = [row for row in rows_of(run / "metrics.csv") if row["val/loss"]]
        found[devices] = json.loads((run / "report.json").read_text()), rows_of(run / "predictions.csv"), rows
    (one, one_rows, one_curve), (two, two_rows, two_curve) = found[1], found[2]
    assert not (place / "runs/on2-2").exists()
    assert [row["path"] for row in one_rows] == [row["path"] for row in two_rows]
    assert one["scores"] == two["scores"] and one["confusion"] == two["confusion"]
    for name in ("val/loss", "val/accuracy", "val/f1"):
        assert float(one_curve[0][name]) == pytest.approx(float(two_curve[0][name]), abs=1e-6), name


@pytest.mark.slow
def test_two_processes_say_a_mistake_once(place):
    overrides = ["trainer.devices=2", "trainer.accelerator=cpu", f"model.init_from={place / 'nothing'}"]
    arguments = [sys.executable, "-m", "src.train", *command(place, "finetune", *overrides)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("error: there is no checkpoint") == 1 == done.stderr.count("\n")


@pytest.mark.slow
def test_a_resumed_run_ends_as_if_it_had_not_stopped(place):
    """Crops, order, augmentation and schedule go on where they were."""
    crop = ["data.crop_seconds=0.4", "trainer.max_epochs=3"]
    assert fit(place, "finetune", "name=whole", *crop) == 0

    class Stop(Exception):
        pass

    from src.classification.module import AudioClassification

    began = AudioClassification.on_train_epoch_start

    def stop(self):
        if self.current_epoch == 2:
            raise Stop
        began(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AudioClassification, "on_train_epoch_start", stop)
        with pytest.raises(Stop):
            fit(place, "finetune", "name=cut", *crop)
    assert train.main([*command(place, "finetune", "name=cut", *crop), "--resume", "auto"]) == 0
    whole, cut = (
        torch.load(place / f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not (place / "runs/cut-2").exists()


def test_fine_tuning_begins_at_the_probe(place):
    """With nothing learnt after it, the two pitches are told apart."""
    assert fit(place, "finetune", "name=begin", "optimizer.lr=0", "trainer.max_epochs=1") == 0
    begun = json.loads((place / "runs/begin/report.json").read_text())
    assert begun["scores"]["accuracy"] > 0.8


def test_adapters_learn_in_place_of_the_encoder_and_end_in_its_weights(place):
    pytest.importorskip("peft")
    lora = ["classify.lora_rank=2", "optimizer.lr=0.1"]
    assert fit(place, "finetune", "name=lora", *lora) == 0
    before = load_encoder(place / "encoder").state_dict()
    after = load_classifier(place / "runs/lora").encoder.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert moved == {name for name in before if name.endswith(matrices)}
    for name in moved:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-6) <= 2


@pytest.mark.slow
def test_adapters_go_on_after_a_stop(place):
    pytest.importorskip("peft")
    lora = ["classify.lora_rank=2"]
    assert fit(place, "finetune", "name=lora-on", *lora) == 0
    checkpoint = place / "runs/lora-on/checkpoints/last.ckpt"
    more = [*command(place, "finetune", "name=lora-on", *lora), "trainer.max_epochs=3", "--resume", str(checkpoint)]
    assert train.main(more) == 0
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 2


def events_folder(folder: Path, clips: int = 24) -> Path:
    """Clips of 3 s with a low or high tone somewhere, and a labels.csv of when."""
    folder.mkdir()
    rows = ["filename,onset,offset,label"]
    random = np.random.default_rng(0)
    for number in range(clips):
        samples = 0.01 * random.normal(size=3 * RATE)
        for name, hertz in (("low", 300), ("high", 2500)):
            onset = round(float(random.uniform(0.2, 1.8)), 2)
            begin = round(onset * RATE)
            samples[begin : begin + RATE] += tone(hertz, 1.0, number)
            rows.append(f"{number:02}.wav,{onset},{onset + 1},{name}")
        soundfile.write(folder / f"{number:02}.wav", samples, RATE)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("method", ["linear", "finetune"])
def test_events_are_found_in_time(place, tmp_path, method):
    sounds = events_folder(tmp_path / "events")
    name = f"events-{method}"
    overrides = ["classify.level=frame", f"classify.method={method}", f"data.path={sounds}", f"name={name}"]
    epochs = {"linear": 150, "finetune": 2}[method]
    if method == "finetune":
        overrides.append("classify.folds=3")
    faster = [f"trainer.max_epochs={epochs}", "optimizer.weight_decay=0.01", "optimizer.lr=0.1"]
    assert fit(place, "linear", *overrides, *faster) == 0
    run = place / "runs" / name
    found = json.loads((run / "report.json").read_text())
    assert set(found["scores"]) == {"map", "onset_f1"}
    if method == "finetune":
        return
    assert found["scores"]["map"] > 0.9 and found["scores"]["onset_f1"] > 0.7
    assert train.main(["predict", "--config", str(run / "config.yaml"), f"data.test.path={sounds}"]) == 0
    truth = {(row["filename"], row["label"]): float(row["onset"]) for row in rows_of(sounds / "labels.csv")}
    predicted = rows_of(run / "predictions-new.csv")
    off = [abs(float(row["onset"]) - truth[Path(row["path"]).name, row["label"]]) for row in predicted]
    assert np.median(off) < 0.1 and len(predicted) >= len(truth) * 0.8


def test_frames_without_times_are_refused(place, capsys):
    assert fit(place, "linear", "classify.level=frame") == 2
    assert "give labels.csv the columns onset and offset" in capsys.readouterr().err


def test_the_report_is_a_page_by_itself(place):
    """Numbers as in the JSON, pictures, a player a mistake with sound in it; nothing from elsewhere."""
    assert fit(place, "linear", "name=page", "optimizer.lr=0", "tracking.wandb=offline", *EACH_EPOCH) == 0
    page = (place / "runs/page/report.html").read_text(encoding="utf-8")
    found = json.loads((place / "runs/page/report.json").read_text())
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "url(http" not in page and "<script" not in page
    assert f"{found['scores']['accuracy']:.3f}" in page and page.count("<svg") == 3
    assert page.count("<audio") == len(found["mistakes"]) > 0
    logged = list((place / "runs/page/wandb").rglob("media/html/*.html"))
    assert len(logged) == 1 and "Worst mistakes" in logged[0].read_text(encoding="utf-8")


def test_test_measures_a_classifier_again_and_refuses_other_classes(place, tmp_path, capsys):
    assert fit(place, "linear", "name=again") == 0
    settings = str(place / "runs/again/config.yaml")
    assert train.main(["test", "--config", settings]) == 0
    first, second = (json.loads((place / f"runs/{name}/report.json").read_text()) for name in ("again", "again-test"))
    assert first["scores"] == second["scores"]
    for name, hertz in (("low", 300), ("middle", 900)):
        (tmp_path / name).mkdir()
        for number in range(6):
            soundfile.write(tmp_path / f"{name}/{number}.wav", tone(hertz + number, 0.3, number), RATE)
    assert train.main(["test", "--config", settings, f"data.path={tmp_path}", f"data.sources.0.path={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "only in the checkpoint high; only in the set middle" in said
    checkpoint = str(place / "runs/again/checkpoints/last.ckpt")
    assert train.main([*command(place, "linear", f"data.path={tmp_path}"), "--resume", checkpoint]) == 2


def test_an_odd_folder_is_handled_and_said(place, tmp_path, capsys):
    """A class of one clip, an empty class, 10 ms clips, two rates, hostile files."""
    for number in range(12):
        for name, hertz in (("low", 300), ("high", 2500)):
            (tmp_path / name).mkdir(exist_ok=True)
            rate = 44100 if number % 3 == 0 else RATE
            seconds = 0.01 if number == 5 else 0.4
            time = np.arange(round(seconds * rate)) / rate
            soundfile.write(tmp_path / name / f"{number}.wav", 0.3 * np.sin(2 * np.pi * (hertz + number) * time), rate)
    (tmp_path / "single").mkdir()
    soundfile.write(tmp_path / "single/only.wav", tone(1000, 0.4), RATE)
    (tmp_path / "nothing").mkdir()
    bad = ROOT.parent / "shared/audio/bad"
    hostile = (
        sorted(each for each in bad.iterdir() if each.is_file() and each.suffix in (".wav", ".flac"))
        if bad.is_dir()
        else []
    )
    (tmp_path / "low/broken.wav").write_bytes(b"RIFF")
    for file in hostile:
        (tmp_path / "high" / f"bad_{file.name}").write_bytes(file.read_bytes())
    assert fit(place, "finetune", "name=odd", f"data.path={tmp_path}", "data.max_bad_share=0.5") == 0
    said = capsys.readouterr().out
    assert "the folders nothing of" in said and "test has no clip of single: not measured" in said
    assert "unreadable clips skipped" in said
    skipped = {Path(row["path"]).name for row in rows_of(place / "runs/odd/skipped.csv")}
    assert "broken.wav" in skipped and len(skipped) >= (8 if hostile else 1)
    report = json.loads((place / "runs/odd/report.json").read_text())
    assert np.isfinite(list(report["scores"].values())).all()
