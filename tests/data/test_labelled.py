"""A labelled set as a whole: folds, missing and contradicting labels, small splits; labels in shards and datasets."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src import pack as pack_command
from src.config.settings import DataConfig, SourceConfig
from src.data.labelled import clips as clips_module
from src.data.labelled.clips import read_labelled
from src.data.labelled.datamodule import LabelledDataModule
from src.data.labelled.splits import check_events, find_folds, make_splits
from src.data.packing.index_shards import index_shards
from src.data.packing.manifest import list_clips
from src.data.packing.pack import pack
from src.data.packing.plan import plan_shards
from src.data.sources.annotations import Annotation, Event
from src.data.sources.open import open_source
from src.errors import UserError
from src.evaluation.collection import clips_of


@pytest.fixture(scope="module")
def audio(tmp_path_factory, write_wav):
    """Twelve files, 00.wav to 11.wav."""
    folder = tmp_path_factory.mktemp("audio")
    for number in range(12):
        write_wav(folder / f"{number:02}.wav", 0.1, seed=number)
    return folder


def labelled(audio, place, columns):
    """A folder of the twelve with a labels.csv; columns: name -> function of the number."""
    shutil.copytree(audio, place)
    rows = [",".join(["filename", *columns])]
    rows += [",".join([f"{n:02}.wav", *(str(value(n)) for value in columns.values())]) for n in range(12)]
    (place / "labels.csv").write_text("\n".join(rows))
    return SourceConfig(path=str(place))


@pytest.mark.parametrize(("names", "tested"), [("012", "0"), (["1.0", "2.0", "10.0"], "2.0"), ("abc", "b")])
def test_folds_are_the_values_of_the_column(audio, tmp_path, names, tested):
    config = labelled(audio, tmp_path / "set", {"label": lambda n: "ab"[n % 2], "fold": lambda n: names[n // 2 % 3]})
    read = read_labelled([config], None, None)
    folds = find_folds(read, 3, 0)
    assert folds == find_folds(read, None, 0) == [names[n // 2 % 3].removesuffix(".0") for n in range(12)]
    parts = make_splits(read, 0, folds, tested).parts
    assert parts["test"].rows.tolist() == [n for n in range(12) if names[n // 2 % 3] == tested]
    with pytest.raises(UserError, match=r"classify\.test_fold=7 is not a fold; the folds are "):
        make_splits(read, 0, folds, "7")
    with pytest.raises(UserError, match="set has no folds"):
        make_splits(read, 0, None, "7")


def test_only_some_folds_are_refused(audio, tmp_path):
    one = labelled(audio, tmp_path / "one", {"label": lambda n: "ab"[n % 2], "fold": lambda n: n % 3})
    other = labelled(audio, tmp_path / "other", {"label": lambda n: "ab"[n % 2]})
    with pytest.raises(UserError, match=r"12 of 24 clips have no fold, such as .*other/00\.wav"):
        find_folds(read_labelled([one, other], None, None), None, 0)


def test_clips_without_a_label_are_counted_and_listed(audio, tmp_path):
    config = labelled(audio, tmp_path / "set", {"label": lambda n: ["nan", "", "-1", "0.0", "1.0", "2.0"][n % 6]})
    read = read_labelled([config], None, None)
    assert read.class_names == ["0", "1", "2"] and len(read.clips) == 6 and not read.bad
    assert [path[-6:] for path, reason in read.left_out if reason == "no label"] == [
        f"{n:02}.wav" for n in (0, 1, 2, 6, 7, 8)
    ]
    assert any("6 clips" in note and "have no label" in note and "00.wav" in note for note in read.notes)


def test_a_file_under_two_classes_is_left_out(audio, tmp_path):
    config = labelled(audio, tmp_path / "set", {"label": lambda n: "ab"[n % 2]})
    shutil.copy(audio / "00.wav", tmp_path / "set" / "01.wav")  # a and b
    shutil.copy(audio / "02.wav", tmp_path / "set" / "04.wav")  # both a
    read = read_labelled([config], None, None)
    assert [path[-6:] for path, _ in read.left_out] == ["00.wav", "01.wav"] and len(read.clips) == 10
    assert any("1 files are in the set under different labels" in note for note in read.notes)


def test_one_class_in_train_is_refused(audio, tmp_path):
    columns = {"label": lambda n: "ab"[n % 2], "split": lambda n: ["train", "test", "train", "valid"][n % 4]}
    with pytest.raises(UserError, match="train has only the class a"):
        make_splits(read_labelled([labelled(audio, tmp_path / "set", columns)], None, None), 0)


def test_fewer_clips_than_processes_are_refused_before_training(audio, tmp_path):
    read = read_labelled([labelled(audio, tmp_path / "set", {"label": lambda n: "ab"[n % 2]})], None, None)
    data = LabelledDataModule(make_splits(read, 0), DataConfig())
    data.trainer = SimpleNamespace(world_size=2, global_rank=0)
    data.setup("fit")
    data.trainer = SimpleNamespace(world_size=4, global_rank=0)
    with pytest.raises(UserError, match=r"valid has 2 clips for 4 processes; use fewer processes"):
        data.setup("fit")


def test_clips_without_a_split_beside_others_are_said(audio, tmp_path):
    columns = {"label": lambda n: "ab"[n % 2]}
    bare = labelled(audio, tmp_path / "other", columns)
    split = labelled(audio, tmp_path / "set", {**columns, "split": lambda n: ["train", "test"][n % 2]})
    said = "12 clips have no split, others have one: they are train"
    assert any(said in note for note in read_labelled([split, bare], None, None).notes)
    for sources, test in (([split], None), ([bare], None), ([bare], split)):
        assert not any("have no split" in note for note in read_labelled(sources, None, test).notes)


@pytest.mark.parametrize(("times", "said"), [
    ("0,0.05", ""), ("50,80", "no event of train lies in its clip, such as"), ("0.021,0.059", "no event of train"),
])  # fmt: skip
def test_events_that_no_token_lies_in_are_said_or_refused(audio, tmp_path, times, said):
    """Clips last 0.1 s; tokens have their centers at 0.02 s, 0.06 s, ..."""
    shutil.copytree(audio, tmp_path / "set")
    table, header = tmp_path / "set/labels.csv", "filename,onset,offset,label\n"
    rows = "".join(f"{n:02}.wav,{times},{'ab'[n % 2]}\n" for n in range(12))

    def split(text):
        table.write_text(header + text)
        made = make_splits(read_labelled([SourceConfig(path=str(tmp_path / "set"))], None, None), 0)
        check_events(made, 0.04)
        return [note for note in made.notes if "beyond their clips" in note]

    if not said:
        assert not split(rows)
        return
    with pytest.raises(UserError, match=said):
        split(rows)
    notes = split(rows + "".join(f"{n:02}.wav,0.01,0.05,a\n" for n in range(12)))
    assert len(notes) == 3 and "8 of 16 events of train" in notes[0]


def test_split_names_are_no_classes(audio, tmp_path):
    for name in ("train", "test"):
        shutil.copytree(audio, tmp_path / name)
    with pytest.raises(UserError, match="has no labels"):
        read_labelled([SourceConfig(path=str(tmp_path))], None, None)


def test_labels_go_into_shards_and_come_out_of_them(audio, tmp_path):
    columns = {
        "label": lambda n: ["dog", "cat;dog", ""][n % 3], "split": lambda n: ["train", "test"][n % 2],
        "fold": lambda n: n % 4, "group": lambda n: "xyz"[n % 3],
    }  # fmt: skip
    config = labelled(audio, tmp_path / "set", columns)
    events = tmp_path / "events"
    shutil.copytree(audio, events)
    (events / "labels.csv").write_text("filename,onset,offset,label\n00.wav,0,0.05,dog\n00.wav,0.01,0.1,cat\n")
    for number, place in enumerate((tmp_path / "set", events)):
        out = str(tmp_path / f"shards{number}")
        results = pack(plan_shards(list_clips([str(place)]), out, 15e3), out)
        assert sum(packed.samples for packed in results) == 12
        folder = open_source(SourceConfig(path=str(place)))
        shards = open_source(SourceConfig("shards", str(tmp_path / f"shards{number}" / "*.tar")))
        assert shards.shards > 1 and list(shards.class_names) == list(folder.class_names) == ["cat", "dog"]
        assert [shards.annotation(i) for i in range(12)] == [folder.annotation(i) for i in range(12)]
        list(index_shards([str(each) for each in (tmp_path / f"shards{number}").glob("*.tar")]))
        again = open_source(SourceConfig("shards", str(tmp_path / f"shards{number}" / "*.tar")))
        assert [again.annotation(i) for i in range(12)] == [folder.annotation(i) for i in range(12)]
    assert shards.annotation(0) == Annotation(("dog", "cat"), events=(Event(0.0, 0.05, "dog"), Event(0.01, 0.1, "cat")))
    assert len(read_labelled([config], None, None).clips) == 8


def test_events_are_read_from_a_dataset_as_pack_writes_it(audio, tmp_path):
    shutil.copytree(audio, tmp_path / "set")
    table = "filename,onset,offset,label\n00.wav,0,0.05,dog\n00.wav,0.01,0.1,cat\n03.wav,0.02,0.04,dog\n"
    (tmp_path / "set/labels.csv").write_text(table)
    assert pack_command.main([str(tmp_path / "set"), "--format", "parquet", "--out", str(tmp_path / "rows")]) == 0
    config = SourceConfig("huggingface", str(tmp_path / "rows"), label_column="label", label_separator=";")
    folder, rows = open_source(SourceConfig(path=str(tmp_path / "set"))), open_source(config)
    assert [rows.annotation(i) for i in range(12)] == [folder.annotation(i) for i in range(12)]
    (file,) = (tmp_path / "rows").rglob("*.parquet")
    whole = pq.read_table(file)

    def again(events):
        place = whole.column_names.index("events")
        pq.write_table(whole.set_column(place, "events", pa.array(events)), tmp_path / "other.parquet")
        return open_source(replace(config, path=str(tmp_path / "other.parquet")))

    assert again(["a party"] * 12).annotation(0) == Annotation(("dog", "cat"))  # another column of that name
    with pytest.raises(
        UserError, match=r"other\.parquet, row 3: an event is of cow, which is not among its labels dog"
    ):
        again(['[[0, 0.1, "dog"]]'] * 3 + ['[[0, 0.1, "cow"]]'] + [None] * 8)


def test_a_semicolon_in_a_class_goes_into_shards_and_comes_out_of_them(audio, tmp_path):
    for name in ("a;b", "[c]"):
        (tmp_path / "set" / name).mkdir(parents=True)
        shutil.copy(audio / "00.wav", tmp_path / "set" / name)
    out = str(tmp_path / "shards")
    list(pack(plan_shards(list_clips([str(tmp_path / "set")]), out, 1e9), out))
    shards = open_source(SourceConfig("shards", str(tmp_path / "shards" / "*.tar")))
    assert [shards.annotation(i).labels for i in range(2)] == [("[c]",), ("a;b",)]
    found = [clip.label for clip in clips_of([open_source(SourceConfig(path=str(tmp_path / "set")))], set())]
    assert found == ["[c]", '["a;b"]']


def test_shards_without_labels_have_none(audio, tmp_path):
    out = str(tmp_path / "shards")
    list(pack(plan_shards(list_clips([str(audio)]), out, 1e9), out))
    source = open_source(SourceConfig("shards", str(tmp_path / "shards" / "*.tar")))
    assert source.class_names == () and source.annotation(0) is None


def dataset(file, audio, labels):
    rows = [{"bytes": (audio / f"{n:02}.wav").read_bytes(), "path": None} for n in range(len(labels))]
    pq.write_table(pa.table({"audio": rows, "label": labels}), file)
    return SourceConfig("huggingface", str(file), label_column="label")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[1, 0, 1], [0, 0, 0], [0, 1, 1]], [("0", "2"), None, ("1", "2")]),
        ([[1.0, 0.0], [0.0, 1.0], None], [("0",), ("1",), None]),
        ([[True, False, True], [False, True, False]], [("0", "2"), ("1",)]),
        ([[1], [0, 2], []], [("1",), ("0", "2"), None]),
        ([[0, 1, 2], [1, 0, 2]], [("0", "1", "2"), ("1", "0", "2")]),
        ([0.0, float("nan"), 2.0], [("0",), None, ("2",)]),
        ([1, -1, 0], [("1",), None, ("0",)]),
        (["nan", "", "²"], [None, None, ("²",)]),
    ],
)
@pytest.mark.filterwarnings("ignore:label_column=label holds 0 or 1")
def test_labels_in_a_column(audio, tmp_path, labels, expected):
    source = open_source(dataset(tmp_path / "a.parquet", audio, labels))
    found = [source.annotation(i) for i in range(len(labels))]
    assert [each and each.labels for each in found] == expected


@pytest.mark.parametrize("labels", [[[0.2, 0.8], [0.9, 0.1]], [[1, 0, 0, -1], [0, 1, -1, 1]]])
def test_lists_of_other_numbers_are_refused(audio, tmp_path, labels):
    with pytest.raises(UserError, match="label_column=label holds lists of numbers such as"):
        open_source(dataset(tmp_path / "a.parquet", audio, labels))


def test_rows_that_are_not_compared_are_no_leaks(audio, tmp_path, monkeypatch):
    """Datasets without file names: row 0 of one split is not row 0 of another."""
    import datasets

    monkeypatch.setattr(clips_module, "MAX_COMPARED", 2)
    parts = {}
    for place, split in enumerate(("train", "test")):
        rows = [{"bytes": (audio / f"{6 * place + n:02}.wav").read_bytes(), "path": None} for n in range(6)]
        parts[split] = datasets.Dataset.from_list([{"audio": row, "label": "ab"[n % 2]} for n, row in enumerate(rows)])
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    sources = {
        split: SourceConfig("huggingface", str(tmp_path / "set"), split=split, label_column="label") for split in parts
    }
    read = read_labelled([sources["train"]], None, sources["test"])
    assert len({clip.key for clip in read.clips}) == 12
    divided = make_splits(read, 0)
    assert sum(len(part) for part in divided.parts.values()) == 12
    assert not any("left out of train" in note for note in divided.notes)
