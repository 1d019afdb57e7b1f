"""Tasks that are Hugging Face datasets with official splits or a fold column, on the hub or on disk.

`hf://owner/name?label=category&fold=fold&config=v1&separator=,` names the columns; without them, the label is `label`.
In parquet files of a pattern such as `a/{split}/*.parquet`, the split is train, validation or test.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from src.config.settings import SourceConfig
from src.data.sources.annotations import in_order
from src.data.sources.hub import HuggingFaceSource
from src.errors import UserError
from src.evaluation.problem import Kind
from src.evaluation.tasks.known import KNOWN
from src.evaluation.tasks.task import SCENE_METRICS, Clip, Labels, Task, domain_of
from src.hub_names import hub_repository

_KEYS = {
    "label": "label_column", "fold": "fold_column", "group": "group_column", "audio": "audio_column",
    "config": "config_name", "separator": "label_separator",
}  # fmt: skip
_SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}


def read_hub(text: str, name: str | None = None) -> Task:
    """Raises: UserError: no such dataset, split or column; an option that isn't known; neither splits nor folds."""
    path, _, query = text.partition("?")
    options = dict(parse_qsl(query))
    if unknown := set(options) - set(_KEYS):
        raise UserError(f"{text}: {unknown.pop()} is not an option; use {', '.join(_KEYS)}")
    config = SourceConfig("huggingface", path, label_column="label")
    columns: dict[str, Any] = {_KEYS[key]: value for key, value in options.items()}
    config = replace(config, **columns)
    clips, found = [], []
    for split in _split_names(config):
        path_of_split = config.path.replace("{split}", split)
        source = HuggingFaceSource(replace(config, split=split, path=path_of_split))
        for number in range(len(source)):
            if annotation := source.annotation(number):
                part = str(annotation.fold) if config.fold_column else _SPLITS.get(split, split)
                clips.append(Clip(source, number))
                found.append((part, annotation.labels, annotation.group))
    class_names = _class_names(clips)
    index = {each: number for number, each in enumerate(class_names)}
    kind: Kind = "multilabel" if any(len(labels) > 1 for _, labels, _ in found) else "multiclass"
    folds = in_order({part for part, _, _ in found}) if config.fold_column else []
    name = name or Path(path).name
    return Task(
        name=name,
        layout=f"Hugging Face: {path}",
        clips=clips,
        labels=[Labels(part, tuple(index[each] for each in labels), (), group) for part, labels, group in found],
        class_names=class_names,
        kind=kind,
        metrics=SCENE_METRICS[kind],
        folds=folds,
        domain=KNOWN[name].domain if name in KNOWN else domain_of(name),
    )


def _split_names(config: SourceConfig) -> list[str]:
    """Those of the dataset that are train, validation or test; with folds, all."""
    import datasets

    if "{split}" in config.path:
        return ["train", "validation", "test"]
    names: list[Any]
    try:
        if (Path(config.path) / "dataset_dict.json").exists():
            names = list(datasets.load_from_disk(config.path))
        else:
            names = datasets.get_dataset_split_names(hub_repository(config.path) or config.path, config.config_name)
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the dataset {config.path} can't be loaded ({reason}); a hub id needs network access"
        ) from error
    chosen = [name for name in names if config.fold_column or name in _SPLITS]
    if not chosen:
        raise UserError(f"{config.path} has the splits {', '.join(names)}; a task needs train and test, or fold=COLUMN")
    return chosen


def _class_names(clips: list[Clip]) -> list[str]:
    """Of all splits, in the order of the first."""
    sources = {id(clip.source): clip.source for clip in clips}
    return list(dict.fromkeys(name for source in sources.values() for name in source.class_names))
