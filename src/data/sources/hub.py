"""Hugging Face datasets, from the hub or from disk, with undecoded audio."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.audio.decode import AudioError, Encoded
from src.config.settings import SourceConfig
from src.data.sources.audio_column import AudioColumn, encoded_clip, undecoded
from src.data.sources.label_column import read_annotations
from src.data.sources.source import Source
from src.errors import UserError, nearest
from src.hub_names import hint, hub_repository


class HuggingFaceSource(Source):
    """A map-style dataset with an undecoded audio column.

    Args:
        dataset: already loaded; None loads the one in `config`.
    """

    def __init__(self, config: SourceConfig, dataset: Any = None) -> None:
        self._location = _location(config)
        dataset = load_hub(config) if dataset is None else dataset
        if config.label_column is not None:
            self._annotate(*read_annotations(dataset, config))
        self._segments = _segments(dataset)
        self._column = AudioColumn(dataset, config.audio_column, dataset_folder(config))
        fingerprint = self._column.dataset._fingerprint
        self._index([f"{fingerprint} {i}" for i in range(len(self._column))], fingerprint)

    def _read(self, i: int) -> Encoded:
        return self._column.read(i)

    def _name(self, i: int) -> str:
        return self._column.name(i)

    def _path(self, i: int) -> str:
        return f"{self._location}#{self._name(i)}"

    @property
    def has_segments(self) -> bool:
        return self._segments is not None

    def segment(self, i: int) -> tuple[str, float] | None:
        if self._segments is None:
            return None
        row = self._segments[int(self._kept[i])]
        return None if row["parent"] is None else (row["parent"], row["start_seconds"])


def _segments(dataset: Any) -> Any:
    """The dataset with only the columns that `python -m src.pack --segment-seconds` adds; None if it has none."""
    types = {name: getattr(dataset.features[name], "dtype", None) for name in dataset.column_names}
    if types.get("parent") != "string" or types.get("start_seconds") != "float64":
        return None
    return dataset.select_columns(["parent", "start_seconds"]).with_format(None)


def dataset_folder(config: SourceConfig) -> Path | None:
    """The folder of a local dataset, in which relative paths are looked for."""
    path = Path(config.path).expanduser()
    if "://" in config.path:
        return None
    return path.parent if path.suffix == ".parquet" else path if path.is_dir() else None


def _location(config: SourceConfig) -> str:
    """`PATH:SPLIT` or `PATH[CONFIG]:SPLIT`; a parquet file has no splits."""
    if config.path.endswith(".parquet"):
        return config.path
    return f"{config.path}{f'[{config.config_name}]' if config.config_name else ''}:{config.split}"


def load_hub(config: SourceConfig) -> Any:
    """A `datasets.Dataset`, or `IterableDataset` for `streaming`, its audio column `undecoded`.

    Raises:
        UserError: not found, no network, no such split, no such column; a column of something else.
    """
    import datasets

    dataset = _load(config, datasets)
    columns = dataset.column_names
    if columns is not None and config.audio_column not in columns:
        raise UserError(f"audio_column={config.audio_column} is not a column{nearest(config.audio_column, columns)}")
    return undecoded(dataset, config.audio_column)


def _load(config: SourceConfig, datasets: Any) -> Any:
    path, repository = Path(config.path).expanduser(), hub_repository(config.path)
    if path.exists():
        datasets.disable_progress_bars()
    elif not (repository or "://" in config.path or glob.glob(str(path))):  # noqa: PTH207, absolute patterns
        raise UserError(f"there is no dataset {config.path} (looked in {Path.cwd()}){hint(config.path)}")
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            loaded = datasets.load_from_disk(str(path))
            if isinstance(loaded, datasets.DatasetDict):
                if config.split not in loaded:
                    raise UserError(f"split={config.split} is not in {config.path}{nearest(config.split, loaded)}")
                loaded = loaded[config.split]
            return loaded.to_iterable_dataset() if config.streaming else loaded
        if path.suffix == ".parquet":  # one file, or a pattern of them, here or on the hub (hf://datasets/...)
            files = glob.escape(str(path)) if path.exists() else config.path if "://" in config.path else str(path)
            return datasets.load_dataset("parquet", data_files=files, split="train", streaming=config.streaming)
        options: dict[str, Any] = {"split": config.split, "streaming": config.streaming}
        if path.is_dir() and glob.has_magic(str(path)) and next(path.rglob("*.parquet"), None):  # [ ] as it is
            return datasets.load_dataset("parquet", data_dir=glob.escape(str(path)), **options)
        return datasets.load_dataset(repository or str(path), config.config_name, **options)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises errors of many libraries
        raise UserError(_explain(config, error)) from error
    finally:
        datasets.enable_progress_bars()


def stream_to_disk(config: SourceConfig, most_bytes: float) -> tuple[Any, bool]:
    """Download rows of a streamed dataset, in order, up to `most_bytes` of encoded audio.

    Returns:
        The `datasets.Dataset`, in the library's cache, and whether it is complete.

    Raises:
        UserError: as `load_hub`.
    """
    import datasets

    stream = load_hub(config)
    wanted = [config.audio_column, config.label_column, config.fold_column, config.group_column]
    stream = stream.select_columns([column for column in wanted if column])
    features = stream.features and datasets.Features(
        {**stream.features, config.audio_column: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    )

    def rows() -> Iterator[dict]:
        num_bytes = 0
        for row in stream:
            audio = row[config.audio_column]
            try:
                encoded = encoded_clip(audio)
                content = encoded if isinstance(encoded, bytes) else Path(encoded).read_bytes()
            except AudioError:
                content = b""  # listed as unreadable later
            num_bytes += len(content)
            if num_bytes > most_bytes:
                return
            yield {**row, config.audio_column: {"bytes": content, "path": (audio or {}).get("path")}}

    datasets.disable_progress_bars()
    try:
        dataset = datasets.Dataset.from_generator(rows, features=features)
    finally:
        datasets.enable_progress_bars()
    complete = next(iter(stream.skip(len(dataset))), None) is None
    return dataset, complete


def _explain(config: SourceConfig, error: Exception) -> str:
    if Path(config.path).is_dir() and "torchcodec" in _texts(error):
        return (
            f"the dataset {config.path} is a folder of audio, which the datasets library opens with torchcodec only; "
            "set kind=folder"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "split" in reason.lower():
        return f"split={config.split} of {config.path}: {reason}"
    if "Config name" in reason or "BuilderConfig" in reason:
        return f"config_name={config.config_name} of {config.path}: {reason}"
    return (
        f"the dataset {config.path} cannot be loaded ({reason}); "
        "a dataset on the hub (hf://owner/name) needs network access, a local one an existing path"
    )


def _texts(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)
