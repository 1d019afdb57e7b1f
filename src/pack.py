"""Pack audio files into tar shards for training at scale, with an index beside each.

    python -m src.pack /my/audio --out shards
    python -m src.pack manifest.csv --out shards --shard-megabytes 500 --workers 8
    python -m src.pack --index '/audio/{0000..0099}.tar'

Files are stored unchanged. Labels from a folder's labels.csv or class folders, and the other columns of a manifest
(except those that the index measures itself), go into the index and into a JSON next to each clip. An interrupted run
resumes with the unfinished shards when the same command is run again. --index writes the index of existing shards;
training then reads no headers. Exit status: 0 done, 1 done but some inputs could not be read (listed in skipped.csv),
2 usage error, 130 interrupted (finished shards are usable).
"""

import argparse
import contextlib
import os
import shlex
import sys
from pathlib import Path

from src.atomic import FolderLock
from src.command_line import new_parser
from src.errors import UserError, exit_status
from src.skipped import report_skipped
from src.verbosity import say, suggest


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run(options), "interrupted; run the same command again to resume", options.verbosity)


def run(options: argparse.Namespace) -> int:
    """Run the command; numpy, pyarrow and soundfile are imported here."""
    from src.data.packing.manifest import list_clips
    from src.data.packing.pack import index_shards, pack
    from src.data.sources.storage import expand_shards
    from src.progress import progress_bar

    if not options.index and options.out is None:
        raise UserError("--out is missing; write --out FOLDER, or --index for existing shards")
    if options.shard_megabytes <= 0 or options.workers < 1:
        raise UserError("--shard-megabytes must be above 0 and --workers at least 1")
    out = Path(options.out or ".")
    if options.index:
        shards = [shard for pattern in options.inputs for shard in expand_shards(pattern)]
        num_shards, results = index_shards(shards, options.workers, options.check)
    else:
        clips = list_clips(options.inputs)
        num_shards, results = pack(clips, out, options.shard_megabytes * 1e6, options.workers, options.check)
    samples, seconds, num_bytes, skipped = 0, 0.0, 0, []
    held = contextlib.nullcontext() if options.index else contextlib.closing(hold(out))
    with held, progress_bar("shards", num_shards) as advance:
        for each in results:
            samples, seconds, num_bytes = samples + each.samples, seconds + each.seconds, num_bytes + each.bytes
            skipped += each.skipped
            advance()
    say(f"{samples:,} samples, {seconds / 3600:,.2f} hours, {num_bytes:,} bytes of audio, {num_shards} shards")
    if not options.index:
        path = shlex.quote(f"data.path={out}/*.tar")
        suggest(f"python -m src.train fit --config configs/pretrain/tiny.yaml --config configs/data/shards.yaml {path}")
    if not skipped and not options.index:
        (out / "skipped.csv").unlink(missing_ok=True)  # of an earlier run
    return report_skipped(skipped, out / "skipped.csv")


def hold(out: Path) -> FolderLock:
    """Raises UserError: another process packs into the same folder; no permission."""
    try:
        return FolderLock(out)
    except BlockingIOError:
        raise UserError(f"another process is packing into {out}; wait for it or choose another --out") from None
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None


def parse(arguments: list[str]) -> argparse.Namespace:
    return parser().parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    parser = new_parser("pack", __doc__)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, manifest (.csv, .tsv, .txt); with --index: shards")
    add("--out", metavar="FOLDER", help="for the shards; with --index: for skipped.csv (default: the current folder)")
    add("--index", action="store_true", help="index existing shards: a tar, a/*.tar, a/{000..012}.tar, s3://...")
    add("--shard-megabytes", type=float, default=500.0, help="maximum size of a shard (default: 500)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes, one shard each")
    add("--check", action="store_true", help="decode every clip, to find damage beyond the header")
    return parser


if __name__ == "__main__":
    sys.exit(main())
