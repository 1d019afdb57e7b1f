"""Write a WebDataset-style tar with an index beside it (`src.data.packing.shard_file`)."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from src.data.packing.shard_file import Packed, counted, index_table, write_index

_BLOCK = 512  # bytes of a tar block


class TarShard:
    """A tar that is being written: audio, and a JSON with the columns of each clip that has any.

    Args:
        file: to be written. shard: the path or URL that it will get. columns: of its index, besides the measures.
    """

    def __init__(self, file: Path, shard: str, columns: Iterable[str]) -> None:
        self._shard, self._columns = shard, columns
        self._file = open(file, "wb")  # noqa: SIM115, closed in `close`
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._rows: list[dict[str, Any]] = []
        self._end, self._num_rows = self._tar.offset, 0  # of the clips that are whole

    def add(self, name: str, data: bytes, measures: dict[str, Any], columns: dict[str, Any]) -> None:
        """A clip, or the next segment of one; it stays if `keep` is called after the last one, not `drop`."""
        offset = self._add_member(name, data)
        self._rows.append({"name": name, "offset": offset, "size": len(data), **measures, **columns})
        if columns:
            self._add_member(str(PurePosixPath(name).with_suffix(".json")), json.dumps(columns).encode())

    def keep(self) -> None:
        self._end, self._num_rows = self._tar.offset, len(self._rows)
        self._tar.members = []  # type: ignore[attr-defined]  # all of them are kept otherwise

    def drop(self) -> None:
        del self._rows[self._num_rows :]
        self._file.seek(self._end)
        self._file.truncate()
        self._tar.offset, self._tar.members = self._end, []  # type: ignore[attr-defined]

    def finish(self, about: dict[str, Any]) -> Packed:
        """Write the index too, with `about` in it. Raises OSError: no permission, disk full, no answer."""
        self._tar.close()
        self._file.close()
        table = index_table(self._rows, self._columns)
        write_index(table, self._shard, about)
        return counted(table, about)

    def close(self) -> None:
        self._file.close()

    def _add_member(self, name: str, data: bytes) -> int:
        """Add a file and return the offset of its data. Without owner and time, equal files give equal shards."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        return self._tar.offset - -(-len(data) // _BLOCK) * _BLOCK
