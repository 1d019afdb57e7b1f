"""Find the nearest neighbors of a sound in a table of embeddings, or lay the table out as a map.

    python -m src.search dog.wav --index sounds.parquet
    python -m src.search dog.wav --index sounds.parquet --top 20 --html neighbors.html
    python -m src.search data/demo:test#0 --index demo.parquet --html neighbors.html
    python -m src.search --index sounds.parquet --map map.html

The index is the output of `python -m src.embed`, a file or a folder of parts, also at a URL; the query is embedded by
the same encoder, with the same settings: an audio file, or a path as the index has it (`DATASET:SPLIT#row`,
`SHARD.tar/member`). The search is exact (cosine similarity) and reads the index in blocks, so that memory does not grow
with it. In an index of tokens, the best token of each clip counts. A query that is in the index finds itself. The pages
play every sound, wherever it lies, and show its log-mel; the files of many sounds go to a folder beside the page.
Exit status: 0 done, 2 usage error.
"""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.atomic import scratch_folder, writing
from src.command_line import new_parser
from src.errors import UserError, exit_status
from src.verbosity import say, suggest

if TYPE_CHECKING:
    import numpy as np

    from src.data.sources.clips import Clips
    from src.evaluation.embedding_index import Neighbour
    from src.pages.sounds import Sounds

_NEIGHBOR_SECONDS = 10.0  # of a sound on the page of neighbors
_MAP_SECONDS = 3.0  # on the map
_BEFORE_TOKEN_SECONDS = 0.5
_MAP_POINTS = 3000


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run(options), verbosity=options.verbosity)


def run(options: argparse.Namespace) -> int:
    """Run the command; torch and other heavy packages are imported here."""
    from src.data.sources.clips import Clips
    from src.evaluation.embedding_index import neighbours, read_settings

    if options.query is None and options.html:
        raise UserError("--html shows the neighbors of a query; give an audio file to search for")
    if options.query is None and not options.map:
        raise UserError("give an audio file to search for, or --map FILE to lay out the whole index")
    if options.top < 1:
        raise UserError(f"--top {options.top} is out of range; it must be at least 1")
    index = options.index
    settings = read_settings(index)
    if options.map and settings["level"] == "frame":
        raise UserError(f"{index} has a row per token; --map needs an index of clips (embed with --level clip)")
    made = settings.get("inputs", {})
    clips = Clips(made.get("in folder", ""), made.get("audio column", "audio"))
    if options.query is not None:
        query = embed_query(options, settings, clips)
        results = neighbours(query, index, options.top)
        print_table(results)
        if options.html:
            write_neighbors(options.query, results, clips, Path(options.html))
            say(f"page with players: {options.html}")
        elif not options.map:
            words = [options.query, "--index", options.index, "--html", "neighbors.html"]
            suggest(f"python -m src.search {shlex.join(words)}")
    if options.map:
        write_map(index, clips, Path(options.map))
        say(f"map: {options.map}")
    return 0


def embed_query(options: argparse.Namespace, settings: dict[str, Any], clips: "Clips") -> "np.ndarray":
    """The query's embedding (D,), made as those of the index.

    Raises:
        UserError: no such query or encoder, a query that is no audio, an encoder with other weights.
    """
    from src.audio.decode import SAMPLE_RATE, AudioError, decode
    from src.embed import embed
    from src.encoders.load import load_encoder
    from src.evaluation.embeddings import fingerprint

    try:
        query = clips.read(options.query) if not Path(options.query).exists() else Path(options.query)
    except AudioError as error:
        raise UserError(f"{error} (looked in {Path.cwd()}); give an audio file to search for") from None
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
    how = {"layers": settings["layers"], "pooling": settings["pooling"]}
    try:
        if isinstance(query, Path):
            return embed(query, encoder, **how)
        return embed(decode(query), encoder, SAMPLE_RATE, **how)
    except AudioError as error:
        raise UserError(f"{options.query}: {error}") from None


def print_table(results: "list[Neighbour]") -> None:
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


def write_neighbors(query: str, results: "Sequence[Neighbour]", clips: "Clips", file: Path) -> None:
    """The page of a query and its neighbors.

    Raises:
        UserError: no permission, disk full, a folder of that name.
    """
    from src.pages.document import breakable, document, table

    with _page(file, "--html") as (sounds, partial):
        cells = [_add(sounds, clips, query, None, _NEIGHBOR_SECONDS)]
        cells += [_add(sounds, clips, each.path, each.time, _NEIGHBOR_SECONDS) for each in results]
        _say_silent(cells)
        shown = [breakable(each) if isinstance(each, str) else sounds.player(each) for each in cells]
        optional = {
            "label": [breakable(each.label or "") for each in results],
            "seconds": [f"{each.time:.2f}" if each.time is not None else "" for each in results],
        }
        columns = {
            "rank": [str(rank) for rank in range(1, len(results) + 1)],
            "sound": shown[1:],
            "similarity": [f"{each.similarity:.3f}" for each in results],
            **{name: column for name, column in optional.items() if any(column)},
            "path": [breakable(each.path) for each in results],
        }
        title = f"Neighbors of {query}"
        rows = list(zip(*columns.values(), strict=True))
        note = (
            f'<p class="muted">At most {_NEIGHBOR_SECONDS:g} s of each sound, at 16 kHz, as the encoder hears it.</p>'
        )
        body = f"<p>{shown[0]}</p>\n{note}\n{table(title, list(columns), rows)}"
        partial.write_text(document(title, body), encoding="utf-8", errors="replace")  # names not in UTF-8


def write_map(index: str, clips: "Clips", file: Path) -> None:
    """The page of all sounds of an index, or of an even sample of a large one.

    Raises:
        UserError: no permission, disk full, a folder of that name.
    """
    from src.evaluation.embedding_index import sample_rows
    from src.pages.map import Point, layout, map_page
    from src.progress import progress_bar

    paths, labels, embeddings, total = sample_rows(index, _MAP_POINTS)
    say(f"laying out {len(paths)} sounds")
    places = layout(embeddings)
    with _page(file, "--map") as (sounds, partial):
        cells = []
        with progress_bar("reading sounds", len(paths)) as advance:
            for path in paths:
                cells.append(_add(sounds, clips, path, None, _MAP_SECONDS))
                advance()
        _say_silent(cells)
        points = [
            Point(path, label, "", "", cell) if isinstance(cell, str) else Point(path, label, *sounds.urls(cell))
            for path, label, cell in zip(paths, labels, cells, strict=True)
        ]
        some = (
            f"{len(paths)} of {total} sounds, evenly spaced in the index" if len(paths) < total else f"{total} sounds"
        )
        note = f"{some}; near points sound alike, distances between groups mean little (t-SNE)"
        text = map_page(f"Map of {Path(index).name}", note, places, points)
        partial.write_text(text, encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _page(file: Path, option: str) -> "Iterator[tuple[Sounds, Path]]":
    """The sounds of a page, and its temporary file; both get their place when the page is complete."""
    from src.pages.sounds import Sounds

    if file.is_dir():
        raise UserError(f"{option} {file} cannot be written: it is a folder")
    try:
        with scratch_folder(file.parent) as scratch, writing(file) as partial:
            sounds = Sounds(file, scratch)
            yield sounds, partial
            sounds.publish()
    except OSError as error:
        raise UserError(f"{option} {file} cannot be written: {error.strerror or error}") from None


def _add(sounds: "Sounds", clips: "Clips", path: str, time: float | None, seconds: float) -> int | str:
    """The number of the sound, from shortly before `time`; or why it cannot be read."""
    from src.audio.decode import AudioError, decode

    try:
        return sounds.add(decode(clips.read(path), max(0.0, (time or 0.0) - _BEFORE_TOKEN_SECONDS), seconds), path)
    except AudioError as error:
        return str(error)


def _say_silent(cells: Sequence[int | str]) -> None:
    silent = [cell for cell in cells if isinstance(cell, str)]
    if silent:
        print(f"note: {len(silent)} of {len(cells)} sounds have no player: {silent[0]}", file=sys.stderr)


def parse(arguments: list[str]) -> argparse.Namespace:
    return parser().parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = new_parser("search", __doc__)
    add = parser.add_argument
    add("query", metavar="QUERY", nargs="?", help="an audio file, or a path of the index")
    add("--index", required=True, metavar="PATH", help="parquet file or folder from python -m src.embed")
    add("--encoder", metavar="PATH", help="path of the encoder, if not the one in the index")
    add("--top", type=int, default=10, help="number of neighbors")
    add("--html", metavar="FILE", help="also write a page with players")
    add("--map", metavar="FILE", help="write a map of the index, with sound under the pointer; needs no query")
    return parser


if __name__ == "__main__":
    sys.exit(main())
