"""Events from label files beside the audio: Audacity labels, Raven selection tables, RTTM, Praat TextGrids.

`a.wav` has its events in `a.txt` (Audacity; or Raven, also `a.selections.txt`, `a.Table.1.selections.txt` and BirdNET's
`a.BirdNET.selection.table.txt`), in
`a.rttm`, or in `a.TextGrid` (read by `praatio`). A `.txt` of another form is no label file.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from src.data.sources.annotations import Annotation, Event, composed, event_times, is_missing
from src.data.sources.table import read_table, read_text
from src.errors import UserError

_SUFFIXES = (
    ".txt", ".Table.1.selections.txt", ".selections.txt", ".BirdNET.selection.table.txt", ".rttm", ".TextGrid",
    ".textgrid",
)  # fmt: skip
_RAVEN_TIMES = ("begin time (s)", "end time (s)")
_RAVEN_LABELS = ("label", "annotation", "annotations", "class", "species", "common name", "species code", "call type")


def read_label_files(root: Path, names: Sequence[str]) -> dict[str, Annotation]:
    """By file name, of the files that have events in a label file beside them; names are relative to `root`.

    Raises:
        UserError: with the line: a label file that cannot be read; a file with several of them.
    """
    result = {}
    beside: dict[Path, set[str]] = {}  # by folder: a look into it is cheaper than one for each file
    for name in names:
        folder, stem = (root / name).parent, Path(name).stem
        if folder not in beside:
            beside[folder] = _list_label_files(folder)
        files = [folder / (stem + suffix) for suffix in _SUFFIXES if stem + suffix in beside[folder]]
        found = [(file, events) for file in files if (events := read_events(file)) is not None]
        if len(found) > 1:
            raise UserError(f"{name} has two label files, {found[0][0].name} and {found[1][0].name}; keep one of them")
        if found and found[0][1]:
            unique = tuple(dict.fromkeys(event._replace(label=composed(event.label)) for event in found[0][1]))
            result[name] = Annotation(tuple(dict.fromkeys(event.label for event in unique)), events=unique)
    return result


def _list_label_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.name.endswith(_SUFFIXES) and entry.is_file()}
    except OSError:  # cannot be listed, as the walk has said; names that are not valid text
        return set()


def read_events(file: Path) -> list[Event] | None:
    """The events of a label file, as they are in it; None for a `.txt` that is not one.

    Raises:
        UserError: with the line: not of its form; an event that does not end after its onset.
    """
    if file.suffix.lower() == ".textgrid":
        return _textgrid(file)
    if file.suffix.lower() == ".rttm":
        return _rttm(file)
    try:
        lines = read_text(file).splitlines()
    except UserError:
        return None
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("Selection\t"):
        return _raven(file)
    return _audacity(file, lines) if re.match(r"[0-9.]+\t[0-9.]+\t", first) else None


def _audacity(file: Path, lines: list[str]) -> list[Event]:
    """`start TAB end TAB label`; a line that begins with a backslash has the frequencies of the one before."""
    events = []
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.split("\t", 2)]
        if line.startswith("\\") or not any(cells):
            continue
        if len(cells) < 3:
            raise UserError(f"{file}, line {number} is not an Audacity label: start, end and label, with tabs between")
        if not is_missing(cells[2]):
            events.append(Event(*event_times(cells[0], cells[1], f"{file}, line {number}"), cells[2]))
    return events


def _rttm(file: Path) -> list[Event]:
    """`SPEAKER file channel onset duration <NA> <NA> name ...`; the name is the label."""
    events = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        cells = line.split()
        if not cells or cells[0] != "SPEAKER":
            continue
        where = f"{file}, line {number}"
        try:
            onset, seconds, label = float(cells[3]), float(cells[4]), cells[7]
        except (IndexError, ValueError):
            raise UserError(f"{where} is not RTTM: SPEAKER file channel onset duration <NA> <NA> name") from None
        if cells[1] != file.stem:
            raise UserError(f"{where} is of {cells[1]}, not of {file.stem}; give each file an RTTM of its own")
        events.append(Event(*event_times(str(onset), str(onset + seconds), where), label))
    return events


def _raven(file: Path) -> list[Event]:
    """A selection has a row for each view of it: equal events are one."""
    table = read_table(file)
    columns = [cell.lower() for cell in table.header]
    label = next((name for name in _RAVEN_LABELS if name in columns), None)
    if label is None or not set(_RAVEN_TIMES) <= set(columns):
        raise UserError(
            f"{file} needs the columns Begin Time (s), End Time (s) and one of {', '.join(_RAVEN_LABELS)}; "
            f"its header is {', '.join(table.header)}"
        )
    events = []
    for line, cells in table.rows:
        row = dict(zip(columns, cells, strict=True))
        if not is_missing(row[label]):
            onset, offset = (row[name] for name in _RAVEN_TIMES)
            events.append(Event(*event_times(onset, offset, f"{file}, line {line}"), row[label]))
    return events


def _textgrid(file: Path) -> list[Event]:
    try:
        from praatio import textgrid
        from praatio.utilities.errors import PraatioException
    except ImportError:
        raise UserError(
            f"{file} needs praatio to be read: pip install -e '.[textgrid]'; or export its labels as text"
        ) from None
    try:
        grid = textgrid.openTextgrid(str(file), includeEmptyIntervals=False)
    except (PraatioException, ValueError, IndexError) as error:
        raise UserError(f"{file} is not a TextGrid ({error})") from None
    tiers = [tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)]
    if len(tiers) != 1:
        raise UserError(
            f"{file} has {len(tiers)} tiers of intervals ({', '.join(tier.name for tier in tiers)}); "
            "keep the one with the classes"
        )
    return [Event(*event_times(str(a), str(b), str(file)), label) for a, b, label in tiers[0].entries if label.strip()]
