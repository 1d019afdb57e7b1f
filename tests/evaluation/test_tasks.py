"""Each layout gives the same kind of task, and what is wrong in it is said in a sentence."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest

from src.errors import UserError
from src.evaluation.tasks.known import HEAR_TASKS, KNN_TASKS
from src.evaluation.tasks.listing import HEADER, list_tasks
from src.evaluation.tasks.open import find_tasks, open_task
from tests.evaluation.made_tasks import CLASSES, hear_task, labels_task, wav_bytes, waveform, xares_task


def test_splits_of_labels_csv(tmp_path):
    task = open_task(str(labels_task(tmp_path / "env_beeps")))
    (rotation,) = task.rotations()
    assert (len(rotation.train), len(rotation.valid), len(rotation.test)) == (12, 12, 12)
    assert task.kind == "multiclass" and task.metrics == ("top1_acc",) and task.domain == "environment"
    assert np.bincount(task.targets()[rotation.test]).tolist() == [4, 4, 4]


def test_each_fold_is_test_once_and_the_next_is_valid(tmp_path):
    task = open_task(str(labels_task(tmp_path / "beeps", "fold")))
    rotations = task.rotations()
    fold_of = np.array([labels.part for labels in task.labels])
    assert [rotation.name for rotation in rotations] == ["1", "2", "3", "4"]
    assert [set(fold_of[rotation.valid]) for rotation in rotations] == [{"2"}, {"3"}, {"4"}, {"1"}]
    assert all(
        len(np.concatenate(rotation[1:])) == len(set(np.concatenate(rotation[1:]))) == 48 for rotation in rotations
    )


@pytest.mark.parametrize("split_mode", ["trainvaltest", "new_split_kfold", "presplit_kfold"])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "event"])
def test_hear_layout(tmp_path, kind, split_mode):
    task = open_task(str(hear_task(tmp_path / "beeps", kind, split_mode)))
    assert len(task.rotations()) == (1 if split_mode == "trainvaltest" else 3)
    assert task.timestamps == (kind == "event") and task.class_names == list(CLASSES)
    classes = [[task.class_names[c] for c in labels.classes] for labels in task.labels]
    assert all(len(each) == (1 if kind == "multiclass" else 2) for each in classes)
    if kind == "event":
        assert [(e.onset, e.offset) for e in task.labels[0].events] == [(0.3, 0.6), (0.9, 1.2)]


def test_timestamp_tasks_of_labels_csv(tmp_path):
    folder = labels_task(tmp_path / "beeps")
    lines = (folder / "labels.csv").read_text().splitlines()
    timed = [f"{line},0.1,0.2" for line in lines[1:]]
    (folder / "labels.csv").write_text("\n".join([lines[0] + ",onset,offset", *timed]))
    task = open_task(str(folder))
    assert task.timestamps and task.kind == "multilabel" and task.labels[0].events[0][:2] == (0.1, 0.2)


def test_xares_tars_of_splits_and_folds(tmp_path):
    task = open_task(str(xares_task(tmp_path / "a")))
    assert task.layout == "X-ARES" and sorted(task.class_names) == sorted(CLASSES)
    assert [len(part) for part in task.rotations()[0][1:]] == [6, 6, 6]
    folded = open_task(str(xares_task(tmp_path / "b", [f"ravdess_fold_{i}_0000000.tar" for i in range(4)])))
    assert folded.folds == ["0", "1", "2", "3"]


def test_hugging_face_datasets_with_splits_and_with_folds(tmp_path):
    def rows(count, start):
        for i in range(start, start + count):
            yield {"audio": {"array": waveform(CLASSES[i % 3], i), "sampling_rate": 16000}, "kind": CLASSES[i % 3]}

    def saved(name, splits):
        made = {}
        for number, split in enumerate(splits):
            listed = []
            for row in rows(6, 10 * number):
                audio = {"bytes": wav_bytes(row["audio"]["array"]), "path": None}
                listed.append({"audio": audio, "kind": row["kind"], "part": len(listed) // 3 + number * 2})
            made[split] = datasets.Dataset.from_list(listed)
        datasets.DatasetDict(made).save_to_disk(str(tmp_path / name))
        return tmp_path / name

    task = open_task(f"{saved('splits', ['train', 'validation', 'test'])}?label=kind")
    assert [len(part) for part in task.rotations()[0][1:]] == [6, 6, 6] and len(task.class_names) == 3
    folded = open_task(f"{saved('folds', ['train', 'more'])}?label=kind&fold=part")
    assert folded.folds == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="colour is not an option"):
        open_task(f"{tmp_path / 'splits'}?colour=kind")


def break_metadata(folder: Path, **changes) -> None:
    metadata = json.loads((folder / "task_metadata.json").read_text())
    (folder / "task_metadata.json").write_text(json.dumps({**metadata, **changes}))


BROKEN = {
    "truncated json": (lambda f: (f / "train.json").write_text('{"train_0.wav": ["hi'), r"train\.json is damaged"),
    "missing json": (lambda f: (f / "valid.json").unlink(), r"there is no .*valid\.json"),
    "missing wav": (lambda f: (f / "16000/test/test_0.wav").unlink(), r"test\.json names test_0\.wav, but there is no"),
    "label not in the vocabulary": (
        lambda f: (f / "labelvocabulary.csv").write_text("idx,label\n0,high\n1,low\n"),
        r"the label noise, which labelvocabulary\.csv lacks",
    ),
    "vocabulary without numbers": (lambda f: (f / "labelvocabulary.csv").write_text("label\nhigh\n"), "columns idx"),
    "empty split": (lambda f: (f / "test.json").write_text("{}"), "test has no clips"),
    "class only in test": (
        lambda f: (f / "train.json").write_text(json.dumps({"train_0.wav": ["high"], "train_1.wav": ["low"]})),
        "test has clips of noise, but train has none",
    ),
    "unreadable wav": (lambda f: (f / "16000/train/train_0.wav").write_bytes(b"RIFF"), "1 clips can't be read"),
    "unknown metric": (lambda f: break_metadata(f, evaluation=["acuracy"]), "acuracy"),
    "unknown mode": (lambda f: break_metadata(f, split_mode="loo"), "split_mode is 'loo'"),
    "no audio": (lambda f: (f / "16000").rename(f / "audio"), "has no audio"),
    "two labels": (
        lambda f: (f / "valid.json").write_text(json.dumps({"valid_0.wav": ["high", "low"]})),
        "2 labels; a multiclass task has one",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_task_is_explained_in_a_sentence(tmp_path, case):
    folder = hear_task(tmp_path / "beeps", "multiclass", "trainvaltest")
    spoil, expected = BROKEN[case]
    spoil(folder)
    with pytest.raises(UserError, match=expected) as caught:
        open_task(str(folder))
    assert "\n" not in str(caught.value)


def test_other_wrong_inputs_are_explained(tmp_path):
    folder = labels_task(tmp_path / "beeps")
    (folder / "labels.csv").write_text("filename,label\n" + "train-0.wav,high\ntrain-1.wav,low\n")
    with pytest.raises(UserError, match="neither split nor fold"):
        open_task(str(folder))
    with pytest.raises(UserError, match="there is no task nowhere"):
        open_task("nowhere")
    with pytest.raises(UserError, match="holds no task"):
        (tmp_path / "empty").mkdir()
        find_tasks([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="its name says no split"):
        open_task(str(xares_task(tmp_path / "tars", ["audio.tar"])))


def test_only_names_with_hf_are_asked_of_the_hub(monkeypatch):
    asked = []

    def split_names(path, config):
        asked.append(path)
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.get_dataset_split_names", split_names)
    for text in ("my/sounds", "my/sounds?label=kind"):
        with pytest.raises(UserError, match=r"there is no task my/sounds.*is hf://my/sounds"):
            open_task(text)
    assert not asked
    for text in ("hf://owner/name?label=kind", "ESC-50"):
        with pytest.raises(UserError, match="no network"):
            open_task(text)
    assert asked == ["owner/name", "ashraq/esc50"]


def test_a_dataset_on_the_hub_is_loaded_by_its_name(tmp_path, monkeypatch):
    rows = [{"audio": {"bytes": wav_bytes(waveform(CLASSES[i % 2], i)), "path": None}, "kind": CLASSES[i % 2],
             "part": i // 2} for i in range(6)]  # fmt: skip
    loaded = []

    def load_dataset(path, config=None, **options):
        loaded.append(path)
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr("datasets.get_dataset_split_names", lambda path, config: ["train"])
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = open_task("hf://owner/name?label=kind&fold=part")
    assert loaded == ["owner/name"] and task.name == "name" and task.folds == ["0", "1", "2"]


def test_the_list_says_what_is_there_incomplete_or_missing(tmp_path):
    hear_task(tmp_path / "esc50", "multiclass", "new_split_kfold")
    labels_task(tmp_path / "env_beeps")
    broken = labels_task(tmp_path / "broken")
    (broken / "labels.csv").write_text("nothing")
    lines = {line[0]: line[-1] for line in list_tasks(tmp_path)}
    assert lines["esc50"].startswith("incomplete, 36 of 2000 clips") and lines["env_beeps"].startswith("complete")
    assert lines["broken"].startswith("broken: ") and lines["maestro"].startswith("missing")
    assert all(len(line) == len(HEADER) for line in list_tasks(tmp_path))


def test_what_is_known_of_the_tasks_is_complete():
    counts = {domain: sum(task.domain == domain for task in HEAR_TASKS.values()) for domain in ("speech", "music")}
    assert (
        counts == {"speech": 6, "music": 8} and len(HEAR_TASKS) == 20 and len(KNN_TASKS) == 9
    )  # Beehive has two parts
    for known in [*HEAR_TASKS.values(), *KNN_TASKS.values()]:
        assert known.source.startswith("https://") and known.licence and re.fullmatch(r"split|\d+ folds", known.folds)
