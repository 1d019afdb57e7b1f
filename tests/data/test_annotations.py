"""Labels of files: class folders, CSVs as people write them, mistakes with their line; parts without leaks."""

import csv
import re
import tempfile
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from src.config.settings import SourceConfig
from src.data.labelled.stratify import assign_parts, whole_shares
from src.data.sources.annotations import Annotation, Event, class_texts, fold_names, in_order, labels_cell
from src.data.sources.folder_labels import find_annotations
from src.data.sources.label_table import Row, read_csv, read_rows
from src.data.sources.open import open_source
from src.data.sources.table import read_table
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
        "sep=;\r\nfilename;label\r\na.wav;dog\r\nb.wav;cat|dog\r\nsub/c.wav;cat\r\n",
        'filename,label\na.wav, "dog"\nb.wav, "cat;dog" ,,\nsub/c.wav, cat,\n',
        "filename,label\r\n.\\a.wav,dog\r\nb.wav,cat;dog\r\nsub\\c.wav,cat\r\n",
        "filename|label\na.wav|dog\nb.wav|cat;dog\nsub/c.wav|cat\n",
        'filename,labels\na.wav,dog\nb.wav,"cat, dog"\nsub/c.wav,cat\n',
    ],
    ids=["plain", "mark", "semicolons", "spaces", "tabs", "quotes", "sep", "blanks", "backslashes", "pipes", "commas"],
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
        ("filename,label\n\na.wav,dog,small\n", "line 3 has 3 cells, the header 2; put a cell that contains , in"),
        ('filename,label\na.wav,"dog\nsmall"\nx.wav,cat\n', r"line 4: there is no audio file x\.wav"),
        ('filename,label\na.wav,"dog\u2028small"\nx.wav,cat\n', r"line 3: there is no audio file x\.wav"),
        ('filename,label\na.wav,"dog\nb.wav,cat\n', "line 2: a double quote opens a cell and is not closed"),
        ("filename,label,label\na.wav,dog,cat\n", "has two columns label"),
        ("filename,onset,offset,label\na.wav,0,1,\n", "line 2: the event has no label"),
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


def test_a_comma_belongs_to_a_label_if_the_column_or_another_separator_says_so(tmp_path):
    (tmp_path / "labels.csv").write_text('filename,label\na.wav,"dog, small"\n')
    assert find_annotations(tmp_path, NAMES)["a.wav"].labels == ("dog, small",)
    (tmp_path / "labels.csv").write_text('filename,labels\na.wav,"dog, small;cat"\n')
    assert find_annotations(tmp_path, NAMES)["a.wav"].labels == ("dog, small", "cat")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "Labels.CSV", "metadata.csv"])
def test_names_and_encodings_of_the_table(tmp_path, name, encoding):
    (tmp_path / name).write_text("filename\tlabel\na.wav\tVögel\n", encoding=encoding)
    assert find_annotations(tmp_path, NAMES) == {"a.wav": Annotation(("Vögel",))}


def test_two_tables_are_refused(tmp_path):
    for name in ("labels.csv", "labels.tsv"):
        (tmp_path / name).write_text("filename,label\na.wav,dog\n")
    with pytest.raises(UserError, match=r"both labels\.csv and labels\.tsv"):
        find_annotations(tmp_path, NAMES)


@pytest.mark.parametrize(("listed", "there"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_in_another_unicode_form(tmp_path, listed, there):
    name = "Vögel/é.wav"
    (tmp_path / "labels.csv").write_text(f"filename,label\n{unicodedata.normalize(listed, name)},dog\n", "utf-8")
    found = unicodedata.normalize(there, name)
    assert find_annotations(tmp_path, [found]) == {found: Annotation(("dog",))}


CELLS = st.text(st.sampled_from(' ab,;|"\n\t\u2028é-'), max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), st.sampled_from(",;\t|"))
def test_a_table_is_read_as_it_was_written(rows, delimiter):
    """Cells, and the line where each row begins, of what the csv module writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.csv"
        lines = []
        with open(file, "w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writerow(["filename", "label"])
            for row in rows:
                opened.flush()
                lines.append(file.read_bytes().count(b"\n") + 1)
                writer.writerow(row)
        table = read_table(file)
    assert table.header == ["filename", "label"]
    cells = [[re.sub(r"\s*[\n\u2028]+\s*", " ", cell.strip()) for cell in row] for row in rows]
    assert table.rows == [(line, row) for line, row in zip(lines, cells, strict=True) if any(row)]


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["dog", "", "nan", "NaN", "null", "-1", "<NA>"], ["dog"]),
        (["0.0", "1.0", "nan", "10.0", "2.0"], ["0", "1", "2", "10"]),
        (["0.5", "1.0"], ["0.5", "1.0"]),
        (["-2", "-1", "0", "1"], ["-2", "-1", "0", "1"]),
        (["1.0", "-1.0", "0.0"], ["0", "1"]),
        (["b", "²", "1", "01", "class 10", "class 2", "none"], ["01", "1", "b", "class 2", "class 10", "none", "²"]),
    ],
)
def test_what_is_a_class_and_in_which_order(cells, classes):
    for order in (cells, cells[::-1]):
        assert in_order(name for each in class_texts([[cell] for cell in order]) for name in each) == classes


@given(st.lists(st.sampled_from(["", "nan", "0", "3", "10", "1.0", "2.0", "a", "a 2", "²"]), max_size=12))
def test_folds_are_the_values_of_the_column(texts):
    folds = fold_names(texts)
    assert [fold is None for fold in folds] == [text in ("", "nan") for text in texts]
    assert len(set(folds) - {None}) == len(set(texts) - {"", "nan"})
    assert all(
        fold.removesuffix(".0") == text.removesuffix(".0") for fold, text in zip(folds, texts, strict=True) if fold
    )


NAME = st.text(st.sampled_from("ab ;|,[]'\"\\0ö\u2028"), min_size=1, max_size=6).map(str.strip).filter(bool)


@given(st.lists(NAME, min_size=1, max_size=4, unique=True))
@example(["' 'b"])
@example(["[1, 2]"])
def test_labels_written_into_a_cell_are_read_from_it(labels):
    row = Row("somewhere", {"label": labels_cell(labels)})
    assert read_rows([row])[0].labels == class_texts([labels])[0]


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


@pytest.mark.parametrize("names", [["train/1.wav", "test/1.wav"], ["Train/a/1.wav", "valid/1.wav", "test/2.wav"]])
def test_names_of_splits_are_no_classes(tmp_path, names):
    assert find_annotations(tmp_path, names) == {}
    assert find_annotations(tmp_path, [*names, "dog/1.wav"])["dog/1.wav"].labels == ("dog",)


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


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [1, 0, 0]), (3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1]), (6, [4, 1, 1]), (7, [5, 1, 1]), (20, [14, 3, 3])],
)
def test_small_classes_are_in_every_part(size, expected):
    assert whole_shares([size], (0.7, 0.15, 0.15))[:, 0].tolist() == expected
    parts = assign_parts([("a",)] * size, [str(i) for i in range(size)], (0.7, 0.15, 0.15), 0)
    assert [parts.count(part) for part in range(3)] == expected


SHARES = st.sampled_from([(0.7, 0.15, 0.15), (0.85, 0.0, 0.15), (0.2,) * 5, (1 / 3,) * 3])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), SHARES)
def test_whole_shares_add_up_and_no_part_is_starved(sizes, shares):
    result = whole_shares(sizes, shares)
    used = [part for part, share in enumerate(shares) if share]
    assert result.sum(0).tolist() == sizes and result.min() >= 0
    assert all(result[used, number].min() >= 1 for number, size in enumerate(sizes) if size >= len(used))
    assert not result[[part for part, share in enumerate(shares) if not share]].any()
    if len(set(shares)) == 1:  # folds are equally large, although each class alone cannot be divided
        assert result.sum(1).max() - result.sum(1).min() <= 2


def test_a_class_of_one_clip_is_learnt():
    parts = assign_parts([("rare",)] + [("common",)] * 20, [str(i) for i in range(21)], (0.7, 0.15, 0.15), 0)
    assert parts[0] == 0 and set(parts) == {0, 1, 2}


def test_another_seed_gives_other_parts():
    labels, groups = [("a",), ("b",)] * 20, [str(i) for i in range(40)]
    assert assign_parts(labels, groups, (0.5, 0.5), 0) != assign_parts(labels, groups, (0.5, 0.5), 1)
