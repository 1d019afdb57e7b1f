"""Find the nearest neighbors of a clip in a table of embeddings.

    python -m src.search dog.wav --index sounds.parquet
    python -m src.search dog.wav --index sounds.parquet --top 20 --html neighbors.html

The index is the output of `python -m src.embed`; the query is embedded by the same encoder, with the same settings. The
search is exact (cosine similarity) and reads the index in blocks, so that memory does not grow with it. In an index of
tokens, the best token of each clip counts. A query that is in the index finds itself.
Exit status: 0 done, 2 usage error.
"""

import argparse
import html
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from src.atomic import writing
from src.errors import UserError, exit_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq


SETTINGS = {"encoder", "level", "layers", "pooling"}  # that an index must have in its metadata


class Neighbour(NamedTuple):
    """time: of the best token, in seconds; None in an index of clips."""

    similarity: float
    path: str
    label: str | None
    time: float | None


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Run the command; torch and other heavy packages are imported here."""
    from src.audio.decode import AudioError
    from src.embed import embed
    from src.encoders.load import load_encoder
    from src.evaluation.embeddings import fingerprint

    if options.top < 1:
        raise UserError(f"--top {options.top} is out of range; it must be at least 1")
    if not Path(options.query).exists():
        raise UserError(f"there is no file {options.query} (looked in {Path.cwd()}); give an audio file to search for")
    settings = read_settings(Path(options.index))
    try:
        encoder = load_encoder(options.encoder or settings["encoder"])
    except UserError as error:
        if options.encoder:
            raise
        raise UserError(f"{error}; or set --encoder to the encoder that made {options.index}") from None
    if "weights" not in settings:
        print(f"note: {options.index} does not tell the weights that made it; they are not compared", file=sys.stderr)
    elif settings["weights"] != fingerprint(encoder):
        raise UserError(
            f"{options.index} was made with other weights than {options.encoder or settings['encoder']} has now; "
            "rebuild the index, or set --encoder to the encoder that made it"
        )
    try:
        query = embed(options.query, encoder, layers=settings["layers"], pooling=settings["pooling"])
    except AudioError as error:
        raise UserError(f"{options.query}: {error}") from None
    results = neighbours(query, Path(options.index), options.top)
    print_table(results)
    if options.html:
        write_page(options.query, results, Path(options.html))
        print(f"page with players: {options.html}")
    return 0


def read_settings(index: Path) -> dict[str, Any]:
    """How the embeddings of an index were made.

    Raises:
        UserError: no such file, not an index, or one without rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if index.suffix == ".npz":
        raise UserError(f"{index} is an npz; the search reads parquet; use python -m src.embed ... --out FILE.parquet")
    if not index.is_file():
        raise UserError(f"there is no index {index} (looked in {Path.cwd()}); create one with python -m src.embed")
    try:
        with pq.ParquetFile(index) as file:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
        settings = json.loads((schema.metadata or {})[b"embedding"])
        valid = set(settings) >= SETTINGS and "path" in schema.names
        valid = valid and pa.types.is_fixed_size_list(schema.field("embedding").type)
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error.strerror or 'it is damaged'}; rebuild it") from None
    except (ValueError, KeyError, TypeError):  # not parquet or not JSON, no such key or column, not a dictionary
        valid = False
    if not valid:
        raise UserError(f"{index} is not a table of embeddings; create one with python -m src.embed")
    if not num_rows:
        raise UserError(f"{index} has no rows; rebuild it with python -m src.embed")
    if settings["level"] == "frame":
        settings["pooling"] = "mean"
    return settings


def neighbours(query: "np.ndarray", index: Path, top: int) -> list[Neighbour]:
    """The `top` rows with the largest cosine similarity, one per path, in descending order.

    Args:
        query: (D,).

    Raises:
        UserError: the index has another width, or is damaged.
    """
    import numpy as np
    import pyarrow.parquet as pq

    file = pq.ParquetFile(index, pre_buffer=False, buffer_size=2**20)  # else it loads whole row groups, or all
    width = file.schema_arrow.field("embedding").type.list_size
    if width != len(query):
        raise UserError(f"{index} has {width} values per row, the query {len(query)}; it was made with another encoder")
    query = query / max(float(np.linalg.norm(query)), 1e-12)
    best: dict[str, Neighbour] = {}
    for block in _blocks(file, index):
        rows = block.column("embedding").flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        similarity = rows @ query / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
        paths, others = block.column("path").to_pylist(), block.drop_columns(["embedding"])
        block_best: dict[str, Neighbour] = {}
        for i in np.argsort(-similarity, kind="stable").tolist():
            if paths[i] not in block_best:
                row = others.slice(i, 1).to_pylist()[0]
                label, time = row.get("label"), row.get("time")
                block_best[paths[i]] = Neighbour(float(similarity[i]), paths[i], label, time)
            if len(block_best) == top:
                break
        for path, candidate in block_best.items():
            best[path] = max(candidate, best.get(path, candidate), key=lambda each: each.similarity)
        best = {each.path: each for each in sorted(best.values(), key=lambda each: -each.similarity)[:top]}
    return list(best.values())


def _blocks(file: "pq.ParquetFile", index: Path) -> "Iterator[pa.RecordBatch]":
    """Raises UserError: damaged data."""
    import pyarrow as pa

    try:
        yield from file.iter_batches(8192)
    except (OSError, pa.ArrowException):
        raise UserError(f"{index} is damaged; rebuild it with python -m src.embed") from None


def print_table(results: list[Neighbour]) -> None:
    """Print the neighbors, with labels and times where the index has them."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "similarity", "path", box=None)
    labelled, timed = any(each.label for each in results), any(each.time is not None for each in results)
    if labelled:
        table.add_column("label")
    if timed:
        table.add_column("seconds")
    for rank, each in enumerate(results, 1):
        cells = [str(rank), f"{each.similarity:.3f}", each.path]
        cells += [each.label or ""] if labelled else []
        cells += [f"{each.time:.2f}"] if timed else []
        table.add_row(*cells)
    console = Console(emoji=False)  # keep `:dog:` in a path as text
    if not console.is_terminal:
        console.width = 10_000  # full paths when the output is redirected
    console.print(table, markup=False, highlight=False)


def write_page(query: str, results: list[Neighbour], file: Path) -> None:
    """Raises UserError: no permission, disk full, a folder of that name."""
    try:
        with writing(file) as partial:
            partial.write_text(page(query, results, file), encoding="utf-8", errors="replace")  # names not in UTF-8
    except OSError as error:
        raise UserError(f"--html {file} cannot be written: {error.strerror or error}") from None


def page(query: str, results: list[Neighbour], file: Path) -> str:
    """An HTML page with players; clips are linked relative to `file`."""
    rows = [
        f"<tr><td>{rank}</td><td>{each.similarity:.3f}</td><td>{html.escape(each.label or '')}</td>"
        f"<td>{_player(each.path, each.time, file)}</td><td>{html.escape(each.path)}</td></tr>"
        for rank, each in enumerate(results, 1)
    ]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Neighbors of {html.escape(query)}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }}
audio {{ vertical-align: middle; }}
</style>
<h1>Neighbors of {html.escape(query)}</h1>
<p>{_player(query, None, file)}</p>
<table><thead><tr><th></th><th>similarity</th><th>label</th><th>audio</th><th>path</th></tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody></table>
</html>
"""


def _player(path: str, time: float | None, file: Path) -> str:
    if not Path(path).is_file():
        return "inside a dataset or shard" if ".tar/" in path or "#" in path else "file not found"
    try:
        url = quote(os.fsencode(Path(os.path.relpath(path, file.parent)).as_posix()))
    except ValueError:  # another drive
        url = Path(path).resolve().as_uri()
    start = f"#t={max(0.0, time - 0.5):.2f}" if time is not None else ""
    return f'<audio controls preload="none" src="{html.escape(url)}{start}"></audio>'


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m src.search",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("query", metavar="QUERY", help="an audio file")
    add("--index", required=True, metavar="FILE", help="a parquet file from python -m src.embed")
    add("--encoder", metavar="PATH", help="path of the encoder, if not the one in the index")
    add("--top", type=int, default=10, help="number of neighbors")
    add("--html", metavar="FILE", help="also write a page with players")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
