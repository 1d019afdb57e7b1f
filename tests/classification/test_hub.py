"""Every fragment of configs/data with labels, on a small local dataset of the schema that its hub dataset has."""

import io
import itertools
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from src import train
from src.config.settings import SourceConfig
from src.data.labelled.clips import read_labelled
from src.data.labelled.splits import find_folds, make_splits
from src.encoders.load import load_classifier
from src.encoders.save import save_encoder
from src.errors import UserError
from src.models.initialize import initialize
from src.models.vit import AudioViT

ROOT = Path(__file__).parents[2]
TEXT = datasets.Value("string")
WHOLE = datasets.Value("int64")
COUNTER = itertools.count()


def sound(number: int, rate: int = 16000) -> dict:
    """A clip of its own, as a row's audio."""
    time = np.arange(round(0.3 * rate)) / rate
    file = io.BytesIO()
    samples = 0.3 * np.sin(2 * np.pi * (300 + 400 * (number % 3)) * time + next(COUNTER))
    soundfile.write(file, samples, rate, format="WAV")
    return {"bytes": file.getvalue(), "path": f"{number}.wav"}


def table(columns: dict, features: dict, clips: int = 30) -> datasets.Dataset:
    rows = {"audio": [sound(n) for n in range(clips)], **{k: [f(n) for n in range(clips)] for k, f in columns.items()}}
    dataset = datasets.Dataset.from_dict(rows)
    for name, feature in {**features, "audio": datasets.Audio(decode=False)}.items():
        dataset = dataset.cast_column(name, feature)
    return dataset


def esc50(folder: Path) -> None:
    columns = {"filename": str, "fold": lambda n: n // 3 % 5 + 1, "target": lambda n: n % 3,
               "category": lambda n: ["dog", "rain", "sea"][n % 3]}  # fmt: skip
    features = {"filename": TEXT, "fold": WHOLE, "target": WHOLE, "category": TEXT}
    datasets.DatasetDict({"train": table(columns, features)}).save_to_disk(folder)


def speech_commands(folder: Path) -> None:
    columns = {"file": str, "label": lambda n: n % 3, "speaker_id": lambda n: f"s{n // 6}"}
    features = {"file": TEXT, "label": datasets.ClassLabel(names=["yes", "no", "_silence_"]), "speaker_id": TEXT}
    for split in ("train", "validation", "test"):
        (folder / split).mkdir(parents=True)
        table(columns, features, 12).to_parquet(folder / split / "0000.parquet")


def fsd50k(folder: Path) -> None:
    columns = {"labels": lambda n: ["Bark,Animal", "Rain", "Rain,Animal"][n % 3]}
    parts = {split: table(columns, {"labels": TEXT}, 12) for split in ("train", "validation", "test")}
    datasets.DatasetDict(parts).save_to_disk(folder)


def one_split(folder: Path) -> None:
    columns = {"label": lambda n: n % 3}
    features = {"label": datasets.ClassLabel(names=["angry", "happy", "sad"])}
    datasets.DatasetDict({"train": table(columns, features)}).save_to_disk(folder)


def audioset(folder: Path) -> None:
    columns = {"video_id": str, "human_labels": lambda n: [["Speech", "Gush"], ["Rain"], ["Rain", "Speech"]][n % 3]}
    features = {"video_id": TEXT, "human_labels": datasets.List(TEXT)}
    parts = {"train": table(columns, features), "test": table(columns, features, 12)}
    datasets.DatasetDict(parts).save_to_disk(folder)


SETS = {  # fragment: what makes the dataset, class names, whether several a clip
    "esc50": (esc50, ["dog", "rain", "sea"], False),
    "speech_commands": (speech_commands, ["_silence_", "no", "yes"], False),
    "fsd50k": (fsd50k, ["Animal", "Bark", "Rain"], True),
    "crema_d": (one_split, ["angry", "happy", "sad"], False),
    "voxlingua": (one_split, ["angry", "happy", "sad"], False),
    "audioset": (audioset, ["Gush", "Rain", "Speech"], True),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "encoder"
    model = AudioViT(48, 2, 3)
    initialize(model, 0, "encoder")
    save_encoder(model, folder)
    return folder


def fit(encoder: Path, fragment: str, place: Path, *overrides: str) -> int:
    files = [word for name in ("classify/linear", f"data/{fragment}") for word in ("--config", f"configs/{name}.yaml")]
    settings = [
        f"model.init_from={encoder}",
        f"runs_folder={place.parent}",
        "trainer.threads=1",
        "trainer.max_epochs=2",
    ]
    return train.main(["fit", *files, f"data.path={place}", f"name=run-{fragment}", *settings, *overrides])


@pytest.mark.parametrize("fragment", SETS)
def test_a_fragment_trains_on_a_dataset_of_its_schema(encoder, tmp_path, fragment):
    make, class_names, multi = SETS[fragment]
    make(tmp_path / "set")
    assert fit(encoder, fragment, tmp_path / "set") == 0
    model = load_classifier(tmp_path / f"run-{fragment}")
    assert (model.class_names, model.multi) == (class_names, multi)
    report = json.loads((tmp_path / f"run-{fragment}/report.json").read_text())
    made = any("made from train" in note for note in report["notes"])
    assert made == (fragment in ("crema_d", "voxlingua", "audioset"))


def test_all_labelled_fragments_are_tried_here():
    fragments = {path.stem for path in (ROOT / "configs/data").glob("*.yaml") if "label_column" in path.read_text()}
    assert fragments == {*SETS, "demo"}


def test_the_folds_of_a_dataset_are_used(tmp_path):
    esc50(tmp_path / "set")
    config = SourceConfig("huggingface", str(tmp_path / "set"), label_column="category", fold_column="fold")
    labelled = read_labelled([config], None, None)
    folds = find_folds(labelled, None, 0)
    assert folds == [str(n // 3 % 5 + 1) for n in range(30)]
    divided = make_splits(labelled, 0, folds, "4")
    assert [n // 3 % 5 + 1 for n in divided.parts["test"].rows] == [4] * 6
    assert {int(n // 3 % 5 + 1) for n in divided.parts["valid"].rows} == {5}


def test_groups_of_a_dataset_stay_together(tmp_path):
    speech_commands(tmp_path / "set")
    config = SourceConfig(
        "huggingface", str(tmp_path / "set/train/*.parquet"), label_column="label", group_column="speaker_id"
    )
    (tmp_path / "more").mkdir()
    parts = make_splits(read_labelled([config, with_split(tmp_path)], None, None), 0).parts
    speakers = [{clip.annotation.group for clip in part.clips} for part in parts.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) >= 3


def with_split(tmp_path: Path) -> SourceConfig:
    columns = {"label": lambda n: n % 3, "speaker_id": lambda n: f"t{n // 2}"}
    features = {"label": datasets.ClassLabel(names=["yes", "no", "_silence_"]), "speaker_id": TEXT}
    table(columns, features).to_parquet(tmp_path / "more/0000.parquet")
    return SourceConfig(
        "huggingface", str(tmp_path / "more/0000.parquet"), label_column="label", group_column="speaker_id"
    )


def test_a_streamed_set_is_read_as_far_as_the_cache_goes(tmp_path):
    one_split(tmp_path / "set")
    config = SourceConfig("huggingface", str(tmp_path / "set"), label_column="label", streaming=True)
    whole = read_labelled([config], None, None)
    assert len(whole.clips) == 30 and not whole.notes
    size = len(sound(0)["bytes"])
    part = read_labelled([config], None, None, cache_gigabytes=12.5 * size / 1e9)
    assert len(part.clips) == 12 and "12 clips" in part.notes[0]
    assert np.array_equal(part.targets, whole.targets[:12])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("label_column", "emotion", "label_column=emotion is not a column"),
        ("fold_column", "speaker", "fold_column=speaker is not a column"),
        ("fold_column", "label", "folds; it takes three or more"),
    ],
)
def test_wrong_columns_end_in_one_sentence(tmp_path, key, value, words):
    columns = {"label": lambda n: n % 2 + 1}
    datasets.DatasetDict({"train": table(columns, {"label": WHOLE}, 6)}).save_to_disk(tmp_path / "set")
    keys = {"label_column": "label", key: value}
    with pytest.raises(UserError, match=words):
        labelled = read_labelled([SourceConfig("huggingface", str(tmp_path / "set"), **keys)], None, None)
        find_folds(labelled, None, 0)
