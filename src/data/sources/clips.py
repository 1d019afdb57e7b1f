"""Clips by the paths that `Source.path` gives, as they stand in a table of embeddings or predictions."""

import re
from pathlib import Path
from typing import Any

from src.audio.decode import AudioError, Encoded
from src.config.settings import SourceConfig
from src.data.sources.audio_column import AudioColumn
from src.data.sources.hub import dataset_folder, load_hub
from src.data.sources.index import read_member, tar_members
from src.data.sources.storage import open_filesystem, retry
from src.errors import UserError

_ROW = re.compile(r"#(\d+)(?=:|$)")
_DATASET = re.compile(r"(?P<path>.+?)(\[(?P<config>[^\[\]]+)\])?:(?P<split>[^:\[\]]+(\[[^\]]*\])?)")


class Clips:
    """Reads files, `SHARD.tar/member`, `DATASET:SPLIT#row` and URLs of files.

    Args:
        folder: that relative paths start from; what is not there is looked for in the current folder.
        audio_column: of datasets.
    """

    def __init__(self, folder: str | Path = "", audio_column: str = "audio") -> None:
        self._folder, self._audio_column = Path(folder), audio_column
        self._columns: dict[str, AudioColumn] = {}
        self._members: dict[str, dict[str, tuple[int, int]]] = {}

    def read(self, path: str) -> Encoded:
        """The encoded clip.

        Raises:
            AudioError: there is no such clip, or its storage cannot be read.
        """
        if (file := self.file(path)) is not None:
            return file
        try:
            for match in re.finditer(r"\.tar/", path):
                shard, member = path[: match.end() - 1], path[match.end() :]
                if "://" in shard or self.file(shard) is not None:
                    return self._read_member(str(self.file(shard) or shard), member)
            problem: UserError | None = None
            for match in _ROW.finditer(path):  # "#1" may also be a part of a name
                try:
                    return self._read_row(path[: match.start()], int(match[1]), path[match.start() + 1 :])
                except UserError as error:
                    problem = problem or error
            if problem is not None:
                raise problem
            if "://" in path:
                filesystem, place = open_filesystem(path)
                return retry(lambda: filesystem.cat_file(place), True)
        except (UserError, OSError) as error:
            raise AudioError(str(error)) from None
        raise AudioError(f"there is no file {path}")

    def file(self, path: str) -> Path | None:
        """The local file of that path; None if there is none."""
        place = Path(path).expanduser()
        return next((each for each in (self._folder / place, place) if each.is_file()), None)

    def _read_member(self, shard: str, member: str) -> bytes:
        if shard not in self._members:
            table = tar_members(shard).to_pydict()
            places = zip(table["offset"], table["size"], strict=True)
            self._members[shard] = dict(zip(table["name"], places, strict=True))
        if member not in self._members[shard]:
            raise AudioError(f"{shard} has no {member}")
        return read_member(shard, member, *self._members[shard][member])

    def _read_row(self, dataset: str, row: int, name: str) -> Encoded:
        """name: of the row when its path was written; the bare number is taken too."""
        if dataset not in self._columns:
            config = self._config(dataset)
            self._columns[dataset] = AudioColumn(load_hub(config), config.audio_column, dataset_folder(config))
        column = self._columns[dataset]
        if row >= len(column):
            raise AudioError(f"{dataset} has {len(column)} rows, no row {row}")
        if name not in (str(row), column.name(row)):
            raise AudioError(f"row {row} of {dataset} is now {column.name(row)}")
        return column.read(row)

    def _config(self, dataset: str) -> SourceConfig:
        """Raises UserError: not the path of a dataset with its split."""
        options: dict[str, Any] = {"audio_column": self._audio_column}
        if dataset.endswith(".parquet"):
            path = dataset
        elif match := _DATASET.fullmatch(dataset):
            path = match["path"]
            options |= {"split": match["split"], "config_name": match["config"]}
        else:
            raise UserError(f"there is no dataset {dataset}; a row of one is DATASET:SPLIT#row")
        local = self._folder / Path(path).expanduser()
        return SourceConfig("huggingface", str(local) if "://" not in path and local.exists() else path, **options)
