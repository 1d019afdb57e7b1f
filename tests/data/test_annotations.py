"""Labels of files: class folders, CSVs as people write them, mistakes with their line; parts without leaks."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.config.settings import SourceConfig
from src.data.labelled.stratify import assign_parts
from src.data.sources.annotations import Annotation, Event
from src.data.sources.folder_labels import find_annotations
from src.data.sources.label_table import read_csv
from src.data.sources.open import open_source
from src.errors import UserError

NAMES = ["a.wav", "b.wav", "sub/c.wav"]
EXPECTED = {"a.wav": ("dog",), "b.wav": ("cat", "dog"), "sub/c.wav": ("cat",)}


@pytest.mark.parametrize(
    "text",
    [
        "filename,label\na.wav,dog\nb.wav,cat;dog\nsub/c.wav,cat\n",
        "\ufefffilename,label\r\na.wav,dog\r\nb.wav,cat;dog\r\nsub/c.wav,cat\r\n",
        "filename;label\na.wav;dog\nb.wav;cat|dog\nsub/c.wav;cat",
        "Filename , Label\n  a.wav , dog\n\n./b.wav, cat ; dog ;cat\nsub/c.wav,cat \na.wav,dog\n",
        "file_name\tclass\tnote\na.wav\tdog\tx\nb.wav\tcat;dog\nsub/c.wav\tcat\ty\n",
        'label,fname\ndog,"a.wav"\n"cat;dog",b.wav\ncat,sub/c.wav\n',
    ],
    ids=["plain", "mark", "semicolons", "spaces", "tabs", "quotes"],
)
def test_a_csv_as_people_write_it(tmp_path, text):
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert {name: each.labels for name, each in find_annotations(tmp_path, NAMES).items()} == EXPECTED


def test_splits_folds_and_groups(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text(
        "filename,label,split,fold,group\na.wav,dog,Training,1,x\nb.wav,cat,eval,2,\nsub/c.wav,cat,dev,10,y"
    )
    found = read_csv(file, NAMES)
    assert found["a.wav"] == Annotation(("dog",), "train", "1", "x")
    assert found["b.wav"] == Annotation(("cat",), "test", "2", None)
    assert found["sub/c.wav"] == Annotation(("cat",), "valid", "10", "y")


def test_events_of_a_file_stand_in_rows_of_their_own(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("filename,onset,offset,label\na.wav,0.5,1,dog\na.wav,2,3,cat\na.wav,0.5,1,dog\nb.wav,0,1,cat\n")
    found = read_csv(file, NAMES)
    assert found["a.wav"].labels == ("dog", "cat") and len(found["a.wav"].events) == 2
    assert set(found["a.wav"].events) == {Event(0.5, 1.0, "dog"), Event(2.0, 3.0, "cat")}
    assert found["b.wav"].events == (Event(0.0, 1.0, "cat"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("filename,label\na.wav,dog\nnone.wav,cat\n", r"line 3: there is no audio file none\.wav"),
        ("filename,label\na.wav,dog\n\na.wav,cat\n", r"line 4: a\.wav has a different label.* in line 2"),
        ("filename,label,split\na.wav,dog,holdout\n", "line 2: split holdout is not one of"),
        ("filename,label,fold\na.wav,dog,../one\n", r"line 2: fold \.\./one is not a name"),
        (
            "filename,label,split\na.wav,dog,train\nb.wav,dog,\n",
            r"line 3: b\.wav has no split, but other rows",
        ),
        ("name,label\na.wav,dog\n", "has no column filename; its header is name, label"),
        ("filename,onset,offset,label\na.wav,0,1,dog\na.wav,2,1.5,cat\n", r"line 3: the event runs from 2 to 1\.5 s"),
        ("filename,onset,offset,label\na.wav,0,,dog\n", "line 2: onset and offset are not both numbers"),
        ("filename,onset,label\na.wav,0,dog\n", "line 2: onset and offset are not both numbers"),
        (
            "filename,onset,offset,label,split\na.wav,0,1,dog,train\na.wav,2,3,dog,test\n",
            r"line 3: a\.wav has a different label, split or fold in line 2",
        ),
        ("filename,label\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_a_mistake_names_its_row(tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        find_annotations(tmp_path, NAMES)


def test_another_encoding_is_said(tmp_path):
    (tmp_path / "labels.csv").write_bytes("filename,label\na.wav,Vögel\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        find_annotations(tmp_path, NAMES)


def test_class_folders_also_under_splits(tmp_path):
    assert find_annotations(tmp_path, ["dog/1.wav", "cat/x/2.wav"]) == {
        "dog/1.wav": Annotation(("dog",)),
        "cat/x/2.wav": Annotation(("cat",)),
    }
    found = find_annotations(tmp_path, ["train/dog/1.wav", "train/cat/1.wav", "Val/dog/2.wav"])
    assert found["Val/dog/2.wav"] == Annotation(("dog",), "valid") and found["train/cat/1.wav"].split == "train"
    assert (
        find_annotations(tmp_path, ["dog/1.wav", "2.wav"]) == find_annotations(tmp_path, ["a/1.wav", "a/2.wav"]) == {}
    )


def test_a_folder_source_has_them(tmp_path, bad_files):
    for name, data in zip(NAMES, (bad_files / "8000.wav", bad_files / "u8.wav", bad_files / "text.wav"), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data.read_bytes())
    (tmp_path / "labels.csv").write_text("filename,label\na.wav,dog\nb.wav,cat;dog\nsub/c.wav,bird\n")
    source = open_source(SourceConfig(path=str(tmp_path)))
    assert source.class_names == ["bird", "cat", "dog"] and [source.labels(i) for i in range(len(source))] == [
        (2,),
        (1, 2),
    ]
    assert source.label(0) == 2
    with pytest.raises(UserError, match=r"b\.wav has 2 labels"):
        source.label(1)


CLIPS = st.lists(st.tuples(st.sets(st.sampled_from("abcd"), min_size=1), st.integers(0, 30)), min_size=1, max_size=80)


@given(CLIPS, st.integers(0, 5))
def test_groups_are_never_torn_and_the_seed_decides(clips, seed):
    labels, groups = [sorted(each) for each, _ in clips], [str(group) for _, group in clips]
    parts = assign_parts(labels, groups, (0.7, 0.15, 0.15), seed)
    places = defaultdict(set)
    for part, group in zip(parts, groups, strict=True):
        places[group].add(part)
    assert all(len(each) == 1 for each in places.values()) and set(parts) <= {0, 1, 2}
    assert parts == assign_parts(labels, groups, (0.7, 0.15, 0.15), seed)


@given(st.lists(st.integers(7, 60), min_size=2, max_size=6), st.integers(0, 5))
def test_every_class_is_spread_as_the_shares_say(sizes, seed):
    """Within one clip where each clip is a group of its own."""
    labels = [(f"class {number}",) for number, size in enumerate(sizes) for _ in range(size)]
    parts = assign_parts(labels, [str(i) for i in range(len(labels))], (0.6, 0.2, 0.2), seed)
    counts = Counter(zip((each[0] for each in labels), parts, strict=True))
    for number, size in enumerate(sizes):
        for part, share in enumerate((0.6, 0.2, 0.2)):
            assert abs(counts[f"class {number}", part] - share * size) <= 1


def test_a_class_of_one_clip_is_learnt():
    parts = assign_parts([("rare",)] + [("common",)] * 20, [str(i) for i in range(21)], (0.7, 0.15, 0.15), 0)
    assert parts[0] == 0 and set(parts) == {0, 1, 2}


def test_another_seed_gives_other_parts():
    labels, groups = [("a",), ("b",)] * 20, [str(i) for i in range(40)]
    assert assign_parts(labels, groups, (0.5, 0.5), 0) != assign_parts(labels, groups, (0.5, 0.5), 1)
