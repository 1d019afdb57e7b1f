"""Hugging Face datasets, from the hub or from disk, with the audio left undecoded."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.config import SourceConfig
from src.data.decode import AudioError, Encoded
from src.errors import UserError


def load_hub(config: SourceConfig) -> Any:
    """A `datasets.Dataset`, or `IterableDataset` for `streaming`; its audio column gives {"bytes", "path"}.

    Raises:
        UserError: not to be found, no network, no such split, no such column.
    """
    import datasets

    dataset = _load(config, datasets)
    columns = dataset.column_names
    if columns is not None and config.audio_column not in columns:
        raise UserError(f"audio_column={config.audio_column} is not a column{nearest(config.audio_column, columns)}")
    return dataset.cast_column(config.audio_column, datasets.Audio(decode=False))


def _load(config: SourceConfig, datasets: Any) -> Any:
    path = Path(config.path)
    if path.exists():
        datasets.disable_progress_bars()
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            loaded = datasets.load_from_disk(str(path))
            if isinstance(loaded, datasets.DatasetDict):
                if config.split not in loaded:
                    raise UserError(f"split={config.split} is not in {config.path}{nearest(config.split, loaded)}")
                loaded = loaded[config.split]
            return loaded.to_iterable_dataset() if config.streaming else loaded
        if path.suffix == ".parquet" and path.is_file():
            return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=config.streaming)
        return datasets.load_dataset(config.path, config.config_name, split=config.split, streaming=config.streaming)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises errors of many libraries
        raise UserError(_explain(config, error)) from error
    finally:
        datasets.enable_progress_bars()


def _explain(config: SourceConfig, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "split" in reason.lower():
        return f"split={config.split} of {config.path}: {reason}"
    if "Config name" in reason or "BuilderConfig" in reason:
        return f"config_name={config.config_name} of {config.path}: {reason}"
    return (
        f"the dataset {config.path} cannot be loaded ({reason}); "
        "a hub id needs a network, a local dataset a folder of that name"
    )


def encoded_clip(audio: dict[str, Any] | None) -> Encoded:
    """The bytes of a row's audio column, or the path where it holds one only.

    Raises:
        AudioError: the row has neither.
    """
    if audio is None or (audio["bytes"] is None and not audio["path"]):
        raise AudioError("no audio in this row")
    return audio["bytes"] if audio["bytes"] is not None else Path(audio["path"])


def clip_name(audio: dict[str, Any] | None, row: int) -> str:
    """The row's number, and the file's name where the dataset keeps it."""
    return f"{row}:{Path(audio['path']).name}" if audio and audio["path"] else str(row)


def nearest(found: str, names: Iterable[str]) -> str:
    """What to write instead: the nearest of `names`, and all of them."""
    names = list(names)
    close = difflib.get_close_matches(found, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} There are: {', '.join(names)}" if hint else f"; there are: {', '.join(names)}"
