"""Open sources from a config or from command-line inputs: files, folders, tar shards, Hugging Face datasets."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from src.audio.decode import SUFFIXES
from src.config.settings import SourceConfig
from src.data.sources.folder import FileSource, FolderSource
from src.data.sources.hub import HuggingFaceSource
from src.data.sources.shards import ShardSource
from src.data.sources.source import Source
from src.errors import UserError
from src.hub_names import hint, hub_repository


def open_source(config: SourceConfig) -> Source:
    """The map-style source of a config.

    Raises:
        UserError: no such path, no audio in it, no such split or column; a streamed source, which has no indices.
    """
    if config.streaming:
        raise UserError(
            f"{config.path} cannot be streamed here, only data.sources with kind=huggingface can; set streaming=false"
        )
    if config.kind == "folder":
        return FolderSource(config.path)
    if config.kind == "shards":
        return ShardSource(config.path)
    return HuggingFaceSource(config)


def open_any(config: SourceConfig) -> Source:
    """As `open_source`, but what the path is decides the kind: for audio that is used without its labels."""
    path = Path(config.path).expanduser()
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return FileSource([path])
    kind: Literal["huggingface", "folder", "shards"] = config.kind
    if config.path.endswith(".tar"):
        kind = "shards"
    elif config.path.endswith(".parquet") or hub_repository(config.path):
        kind = "huggingface"
    elif path.is_dir():
        kind = "huggingface" if _is_dataset(path) else "folder"
    return open_source(replace(config, kind=kind))


def open_inputs(
    inputs: list[str], split: str = "train", audio_column: str = "audio", label_column: str | None = None
) -> list[Source]:
    """One source per input; single files form one source, which comes first.

    Args:
        inputs: audio files; folders of them; tars, `a/*.tar`, `a/{000..012}.tar`; saved datasets, parquet files or
            folders of them; `hf://owner/name`, a dataset on the Hugging Face Hub.
        split, audio_column, label_column: of Hugging Face datasets.

    Raises:
        UserError: no such input, or no audio in it.
    """
    audio = (Path(text) for text in inputs if Path(text).suffix.lower() in SUFFIXES)
    files = list(dict.fromkeys(path for path in audio if path.is_file()))
    sources: list[Source] = [FileSource(files)] if files else []
    for text in inputs:
        path = Path(text).expanduser()
        if path in files:
            continue
        if re.search(r"\.tar$", text):
            sources.append(ShardSource(text))
        elif path.is_dir() and not _is_dataset(path):
            sources.append(FolderSource(text))
        elif path.suffix == ".parquet" or path.is_dir() or hub_repository(text):
            sources.append(
                HuggingFaceSource(
                    SourceConfig("huggingface", text, split=split, audio_column=audio_column, label_column=label_column)
                )
            )
        elif path.exists():
            raise UserError(f"{text} has no audio suffix ({', '.join(SUFFIXES)}) and is no folder, tar or parquet")
        else:
            raise UserError(f"there is no file or folder {text} (looked in {Path.cwd()}){hint(text)}")
    return sources


def _is_dataset(folder: Path) -> bool:
    saved = (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()
    return saved or any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))
