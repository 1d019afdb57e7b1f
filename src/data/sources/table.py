"""Tables as text, as spreadsheets and other tools write them: CSV with any of the usual separators, and TSV."""

import codecs
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from src.errors import UserError

_DELIMITERS = ",;\t|"
_BREAKS = re.compile(r"\s*[\r\n\x85\u2028\u2029]+\s*")  # in a quoted cell


class Table(NamedTuple):
    """header: as written. rows: (line, cells), the line its first, from 1; each as many cells as the header."""

    header: list[str]
    rows: list[tuple[int, list[str]]]
    delimiter: str


def read_table(file: Path) -> Table:
    """The cells of a table, without the blanks around them; a line break within a cell is a space.

    The separator is the one that is most frequent in the header, or that of a first line `sep=;`. Empty rows are left
    out. The encoding is UTF-8, or what the byte-order mark says.

    Raises:
        UserError: with the line: cells without a column, a quote that is not closed; no header, another encoding.
    """
    text = read_text(file)
    lines = io.StringIO(text, newline="").readlines()
    first = re.fullmatch(r"sep=(.)\s*", lines[0]) if lines else None
    begin = next((i for i, line in enumerate(lines) if i >= bool(first) and line.strip(" ,;\t\r\n")), len(lines))
    if begin == len(lines):
        return Table([], [], ",")
    delimiter = first[1] if first else max(_DELIMITERS, key=re.sub(r'"[^"]*"', "", lines[begin]).count)
    records = _records(lines, begin, delimiter, file)
    _, header = next(records)
    rows = []
    for line, cells in records:
        if any(cells[len(header) :]):
            raise UserError(
                f"{file}, line {line} has {len(cells)} cells, the header {len(header)}; put a cell that contains "
                f"{'a tab' if delimiter == chr(9) else delimiter} in double quotes"
            )
        if any(cells):
            rows.append((line, [*cells, *[""] * (len(header) - len(cells))][: len(header)]))
    return Table(header, rows, delimiter)


def _records(lines: list[str], begin: int, delimiter: str, file: Path):
    """(line, cells) of each record from the line with index `begin`."""
    reader = csv.reader(lines[begin:], delimiter=delimiter, skipinitialspace=True)
    while True:
        line = begin + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{file}, line {line}: {error}") from None
        if cells is None:
            return
        last = begin + reader.line_num
        if last > line and "".join(lines[line - 1 : last]).count('"') % 2:
            raise UserError(f"{file}, line {line}: a double quote opens a cell and is not closed")
        yield line, [_BREAKS.sub(" ", cell.strip()) for cell in cells]


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, or in the encoding of its byte-order mark; line ends as they are.

    Raises:
        UserError: another encoding.
    """
    data = file.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{file} is not UTF-8; save it as UTF-8")
    return text
