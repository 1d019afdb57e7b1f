"""Events in label files beside the audio: Audacity, RTTM, Raven, TextGrid."""

import pytest

from src.data.sources.annotations import Annotation, Event
from src.data.sources.folder_labels import find_annotations
from src.data.sources.label_files import read_events
from src.errors import UserError

EXPECTED = [Event(0.5, 1.25, "dog bark"), Event(2.0, 3.0, "cat")]
RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tSpecies\n"
FILES = {
    "a.txt": "0.500000\t1.250000\tdog bark\n\\\t100.0\t2000.0\n2.000000\t3.000000\tcat\n3.0\t4.0\t\n",
    "a.rttm": "SPKR-INFO a 1 <NA> <NA> <NA> unknown dog <NA>\n"
    "SPEAKER a 1 0.5 0.75 <NA> <NA> dog <NA> <NA>\nSPEAKER a 1 2 1 <NA> <NA> cat <NA> <NA>\n",
    "a.Table.1.selections.txt": RAVEN
    + "1\tWaveform 1\t1\t0.5\t1.25\t0\tdog bark\n1\tSpectrogram 1\t1\t0.5\t1.25\t0\tdog bark\n"
    + "2\tWaveform 1\t1\t2\t3\t0\tcat\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_events_of_a_label_file(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    expected = [event._replace(label=event.label.split()[0]) for event in EXPECTED] if name == "a.rttm" else EXPECTED
    found = find_annotations(tmp_path, ["a.wav", "b.wav"])
    assert found == {"a.wav": Annotation(tuple(event.label for event in expected), events=tuple(expected))}


@pytest.mark.parametrize("text", ["", "dog barks at 0.5\n", "0 12345 the words of TIMIT\n", "\xff\tnot UTF-8\n"])
def test_other_text_beside_the_audio_is_no_label_file(tmp_path, text):
    (tmp_path / "a.txt").write_text(text, encoding="latin-1")
    assert read_events(tmp_path / "a.txt") is None and find_annotations(tmp_path, ["a.wav"]) == {}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "0\t1\tdog\n2\t2\tcat\n", "line 2: the event runs from 2 to 2 s"),
        ("a.txt", "0\t1\tdog\n2,5\t3\tcat\n", "line 2: onset and offset are not both numbers"),
        ("a.txt", "0\t1\tdog\nmore\n", "line 2 is not an Audacity label"),
        ("a.rttm", "SPEAKER b 1 0 1 <NA> <NA> dog\n", r"line 1 is of b, not of a"),
        ("a.rttm", "SPEAKER a 1 0 one <NA> <NA> dog\n", "line 1 is not RTTM"),
        ("a.txt", RAVEN.replace("Species", "Notes") + "1\tx\t1\t0\t1\t0\tdog\n", "needs the columns Begin Time"),
        ("a.selections.txt", RAVEN + "1\tx\t1\t2\t1\t0\tdog\n", "line 2: the event runs from 2 to 1 s"),
    ],
)
def test_a_mistake_names_its_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        find_annotations(tmp_path, ["a.wav"])


def test_precedence(tmp_path):
    names = ["dog/a.wav", "cat/b.wav"]
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.txt").write_text("0\t1\tbark\n")
    with pytest.warns(UserWarning, match="those of the label files"):
        assert find_annotations(tmp_path, names) == {"dog/a.wav": Annotation(("bark",), events=(Event(0, 1, "bark"),))}
    (tmp_path / "dog" / "a.rttm").write_text("SPEAKER a 1 0 1 <NA> <NA> dog\n")
    with pytest.raises(UserError, match=r"two label files, a\.txt and a\.rttm"):
        find_annotations(tmp_path, names)
    (tmp_path / "labels.csv").write_text("filename,label\ndog/a.wav,dog\n")
    assert find_annotations(tmp_path, names) == {"dog/a.wav": Annotation(("dog",))}


TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 4
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "sounds"
        xmin = 0
        xmax = 4
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "dog bark"
        intervals [3]:
            xmin = 1.25
            xmax = 2
            text = ""
        intervals [4]:
            xmin = 2
            xmax = 3
            text = "cat"
"""


def test_a_textgrid(tmp_path):
    pytest.importorskip("praatio")
    (tmp_path / "a.TextGrid").write_text(TEXTGRID)
    assert read_events(tmp_path / "a.TextGrid") == EXPECTED
    (tmp_path / "a.TextGrid").write_text("nothing of the kind")
    with pytest.raises(UserError, match="is not a TextGrid"):
        read_events(tmp_path / "a.TextGrid")


def test_a_textgrid_without_its_parser(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "praatio", None)
    (tmp_path / "a.TextGrid").write_text(TEXTGRID)
    with pytest.raises(UserError, match="needs praatio to be read"):
        find_annotations(tmp_path, ["a.wav"])
