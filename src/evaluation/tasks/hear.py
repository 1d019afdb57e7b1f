"""Tasks in HEAR's layout, as hear-preprocess writes them.

task_metadata.json     embedding_type (scene, event), prediction_type, split_mode, evaluation (metrics), ...
labelvocabulary.csv    idx,label
train.json ...         or fold00.json ...: file name to labels, or to events {label, start, end} in ms
16000/train/*.wav ...  audio of each part; 48000/ and others are read if 16000/ is missing
"""

import csv
import json
from pathlib import Path
from typing import Any

from src.data.sources.folder import FileSource
from src.errors import UserError
from src.evaluation.problem import Event
from src.evaluation.tasks.known import KNOWN
from src.evaluation.tasks.task import SPLITS, Clip, Labels, Task, domain_of, require_readable

METADATA, VOCABULARY = "task_metadata.json", "labelvocabulary.csv"
_RATES = ("16000", "48000", "44100", "32000", "22050")


def read_hear(path: Path) -> Task:
    """Raises: UserError: a file that is missing, damaged or names a label or audio file that isn't there."""
    metadata = _read_json(path / METADATA)
    timestamps = _one_of(metadata, "embedding_type", {"scene": False, "event": True}, path)
    kind = _one_of(metadata, "prediction_type", {"multiclass": "multiclass", "multilabel": "multilabel"}, path)
    modes = {"trainvaltest": False, "new_split_kfold": True, "presplit_kfold": True}
    folded = _one_of(metadata, "split_mode", modes, path)
    metrics = tuple(metadata.get("evaluation") or ())
    if not metrics:
        raise UserError(f"{path / METADATA}: evaluation names no metric")
    folds = sorted(file.stem for file in path.glob("fold*.json")) if folded else []
    class_names = _read_vocabulary(path / VOCABULARY)
    audio = next((path / rate for rate in _RATES if (path / rate).is_dir()), None)
    if audio is None:
        raise UserError(f"{path} has no audio: none of the folders {', '.join(_RATES)}")
    files, labels = [], []
    for part in folds or SPLITS:
        entries = _read_json(path / f"{part}.json")
        for name in sorted(entries):
            file = audio / part / name
            if not file.is_file():
                raise UserError(f"{path / part}.json names {name}, but there is no file {file}")
            files.append(file)
            labels.append(_labels(entries[name], part, class_names, timestamps, f"{path / part}.json: {name}"))
    source = FileSource(files, audio)
    require_readable(path.name, source)  # before they are numbered
    parameters = metadata.get("evaluation_params") or {}
    name = str(metadata.get("task_name", path.name))
    if (with_mode := f"{name}_{metadata.get('mode')}") in KNOWN:  # the one task exists in two sizes
        name = with_mode
    known = KNOWN.get(name)
    return Task(
        name=name,
        layout="HEAR" if audio.name == "16000" else f"HEAR, resampled from {audio.name} Hz",
        clips=[Clip(source, i) for i in range(len(source))],
        labels=labels,
        class_names=class_names,
        kind=kind,
        metrics=metrics,
        timestamps=timestamps,
        folds=folds,
        domain=known.domain if known else domain_of(name),
        postprocessing=parameters.get("event_postprocessing_grid"),
        grid={**(known.grid if known else {}), **parameters.get("task_specific_param_grid", {})},
        stop_on_score=bool(metadata.get("use_scoring_for_early_stopping", True)),
    )


def _labels(entry: Any, part: str, class_names: list[str], timestamps: bool, where: str) -> Labels:
    if not isinstance(entry, list):
        raise UserError(f"{where} has {entry!r}; it needs a list")
    index = {name: number for number, name in enumerate(class_names)}

    def number(label: Any) -> int:
        if str(label) not in index:
            raise UserError(f"{where} has the label {label}, which {VOCABULARY} lacks")
        return index[str(label)]

    if not timestamps:
        return Labels(part, tuple(dict.fromkeys(number(label) for label in entry)))
    events = []
    for event in entry:
        try:
            start, end = float(event["start"]), float(event["end"])
            label = event["label"]
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{where} has the event {event!r}; it needs label, start and end in ms") from None
        if not 0 <= start <= end:
            raise UserError(f"{where} has an event from {start:g} to {end:g} ms; its start must be first")
        events.append(Event(start / 1000, end / 1000, number(label)))
    return Labels(part, tuple(sorted({event.label for event in events})), tuple(events))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {file}; a task in HEAR's layout needs it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}; it needs an object {{...}}")
    return content


def _read_vocabulary(file: Path) -> list[str]:
    """Class names in the order of their index."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened))
    except FileNotFoundError:
        raise UserError(f"there is no {file}; a task in HEAR's layout needs it") from None
    try:
        numbered = {int(row["idx"]): row["label"] for row in rows}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} needs the columns idx (a number) and label") from None
    if sorted(numbered) != list(range(len(rows))) or len(set(numbered.values())) < len(rows):
        raise UserError(f"{file}: idx must count from 0 to {len(rows) - 1}, each label once")
    return [numbered[i] for i in range(len(rows))]


def _one_of(metadata: dict[str, Any], key: str, allowed: dict[str, Any], path: Path) -> Any:
    value = metadata.get(key)
    if value not in allowed:
        raise UserError(f"{path / METADATA}: {key} is {value!r}; it must be one of {', '.join(allowed)}")
    return allowed[value]
