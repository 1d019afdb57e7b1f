"""Pack audio files into tar shards for training at scale, with an index beside each; or into a Hugging Face dataset.

    python -m src.pack /my/audio --out shards
    python -m src.pack /my/audio --out shards --audio flac --segment-seconds 10
    python -m src.pack manifest.csv --out s3://bucket/shards --shard-megabytes 500 --workers 8
    python -m src.pack --index '/audio/{0000..0099}.tar'
    python -m src.pack /my/audio --out dataset --format parquet
    python -m src.pack /my/audio --out dataset --format parquet --audio flac --segment-seconds 10

Files are stored unchanged, or, with --audio flac, opus or pcm16, as mono at 16 kHz (--sample-rate), which training
decodes many times faster; --segment-seconds cuts long files into segments (columns parent and start_seconds).
Labels from a folder's labels.csv or class folders, and the other columns of a manifest (except those that the index
measures itself), go into the index and into a JSON next to each clip. An interrupted run resumes with the unfinished
shards when the same command is run again. --index writes the index of existing shards; training then reads no headers.

With --format parquet the shards are the files of a dataset, train-00000-of-00012.parquet and so on, a row per clip:
its audio, and in further columns what the index of a tar says. A column split in the labels or the manifest divides it
into train, validation and test. datasets.load_dataset("dataset") opens it with an Audio feature, as do training
(configs/data/hub.yaml), src.embed and pandas.

As many processes as there are share the shards: under torchrun or srun, or each with its --part:

    torchrun --nproc-per-node=8 -m src.pack /my/audio --out shards --audio flac
    sbatch --array=1-16 --wrap 'python -m src.pack /my/audio --out shards --part $SLURM_ARRAY_TASK_ID/16'

Exit status: 0 done, 1 done but some inputs could not be read (listed in skipped.csv; of a dataset in
dataset.skipped.csv, beside it), 2 usage error, 130 interrupted (finished shards are usable). Of several processes, the
last one to finish lists what could not be read.
"""

import argparse
import contextlib
import shlex
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from src.atomic import FolderLock
from src.command_line import new_parser
from src.errors import UserError, exit_status
from src.share import Share, default_workers, find_share
from src.skipped import report_skipped
from src.verbosity import say, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from src.data.packing.prepare import Preparation
    from src.data.packing.shard_file import Packed


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run(options), "interrupted; run the same command again to resume", options.verbosity)


def run(options: argparse.Namespace) -> int:
    """Run the command; numpy, pyarrow and soundfile are imported here."""
    from src.data.packing.manifest import list_clips
    from src.data.packing.pack import pack, read_finished
    from src.data.packing.plan import plan_shards
    from src.data.packing.prepare import choose_preparation

    if not options.index and options.out is None:
        raise UserError("--out is missing; write --out FOLDER, or --index for existing shards")
    if options.shard_megabytes <= 0 or options.workers < 1:
        raise UserError("--shard-megabytes must be above 0 and --workers at least 1")
    preparation = choose_preparation(options.audio, options.sample_rate, options.segment_seconds)
    share = find_share(options.part)
    if options.index:
        return run_index(options, share, preparation)
    clips, shard_bytes = list_clips(options.inputs), options.shard_megabytes * 1e6
    shards = plan_shards(clips, options.out, shard_bytes, preparation, options.format)
    results = pack(shards, options.out, options.workers, options.check, preparation, share)
    with hold(options.out) if share.size == 1 else contextlib.nullcontext():
        mine = collect(results, len(share.of(shards)))
    finished = mine if share.size == 1 else read_finished(shards)
    print_rates(mine)
    if len(finished) < len(shards):
        say(f"{share}: its {len(mine)} shards are finished, {len(finished)} of all {len(shards)}")
        return 0
    status = report(finished, skipped_file(options))
    suggest(f"python -m src.train fit --config configs/pretrain/tiny.yaml {training_options(options, shards[0].path)}")
    return status


def training_options(options: argparse.Namespace, shard: str) -> str:
    """Those by which training reads what was packed. shard: the first one."""
    if options.format == "tar":
        return f"--config configs/data/shards.yaml {shlex.quote(f'data.path={options.out}/*.tar')}"
    split = PurePosixPath(shard).name.partition("-")[0]
    of_split = "" if split == "train" else f" data.sources.0.split={split}"
    return f"--config configs/data/hub.yaml {shlex.quote(f'data.path={options.out}')}{of_split}"


def run_index(options: argparse.Namespace, share: Share, preparation: "Preparation") -> int:
    """Write the indexes of shards that exist already; returns the exit status."""
    from src.data.packing.index_shards import index_shards
    from src.data.sources.storage import expand_shards

    if options.format != "tar":
        raise UserError("--format parquet has no effect with --index, which is for tars; leave one of them out")
    if preparation.audio != "keep":
        raise UserError("--audio has no effect with --index, which changes no shard; leave one of them out")
    shards = share.of([shard for pattern in options.inputs for shard in expand_shards(pattern)])
    results = collect(index_shards(shards, options.workers, options.check), len(shards))
    suffix = "" if share.size == 1 else f"-{share.rank + 1}-of-{share.size}"
    status = report(results, skipped_file(options).with_stem(f"skipped{suffix}"))
    return status if share.size == 1 or options.part else 0  # else torchrun would end the other processes


def collect(results: "Iterable[Packed]", count: int) -> "list[Packed]":
    from src.progress import progress_bar

    done = []
    with progress_bar("shards", count) as advance:
        for each in results:
            done.append(each)
            advance()
    return done


def print_rates(results: "list[Packed]") -> None:
    """What decoding cost, as far as this process decoded anything."""
    from src.data.packing.shard_file import Rate

    before, after = Rate(), Rate()
    for each in results:
        before, after = before.plus(each.before), after.plus(each.after)
    if before.core_seconds and after.core_seconds:
        speeds = [rate.audio_seconds / rate.core_seconds for rate in (before, after)]
        say(
            f"decoding: {speeds[0]:,.0f} seconds of audio per core second before, {speeds[1]:,.0f} after "
            f"({speeds[1] / speeds[0]:.1f} x)"
        )


def skipped_file(options: argparse.Namespace) -> Path:
    """In the folder, or here if that is a URL; beside a dataset, whose readers take all files in it for parquet."""
    from src.data.sources.storage import local_path

    folder = local_path(options.out or ".") or Path()
    if options.format == "parquet" and folder.name:
        return folder.with_name(f"{folder.name}.skipped.csv")
    return folder / "skipped.csv"


def report(results: "list[Packed]", file: Path) -> int:
    """Print the totals, and list what was skipped in `file`; returns the exit status."""
    samples, seconds = sum(each.samples for each in results), sum(each.seconds for each in results)
    num_bytes, source_bytes = sum(each.bytes for each in results), sum(each.source_bytes for each in results)
    say(f"{samples:,} samples, {seconds / 3600:,.2f} hours, {num_bytes:,} bytes of audio, {len(results)} shards")
    if source_bytes:
        say(f"size: {source_bytes:,} bytes before, {num_bytes:,} after ({num_bytes / source_bytes:.2f} x)")
    if clipped := [each for result in results for each in result.clipped]:
        named = ", ".join(f"{path} ({peak:.3f})" for path, peak in clipped[:3]) + (", ..." if len(clipped) > 3 else "")
        what = "1 file exceeds" if len(clipped) == 1 else f"{len(clipped):,} files exceed"
        print(f"{what} full scale (clipped there); peaks: {named}", file=sys.stderr)
    skipped = [entry for result in results for entry in result.skipped]
    file.unlink(missing_ok=True)  # of an earlier run
    return report_skipped(skipped, file)


def hold(out: str) -> contextlib.AbstractContextManager:
    """Closed, it lets others write. A URL cannot be held: two processes would write the same there.

    Raises:
        UserError: another process packs into the same folder; no permission.
    """
    from src.data.sources.storage import local_path

    if (folder := local_path(out)) is None:
        return contextlib.nullcontext()
    try:
        return contextlib.closing(FolderLock(folder))
    except BlockingIOError:
        raise UserError(f"another process is packing into {out}; wait for it or choose another --out") from None
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None


def parse(arguments: list[str]) -> argparse.Namespace:
    return parser().parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = new_parser("pack", __doc__)
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder, URL, manifest (.csv, .tsv, .txt); with --index: shards",
    )
    add("--out", metavar="FOLDER", help="for the shards; with --index: for skipped.csv (default: the current folder)")
    add("--index", action="store_true", help="index existing shards: a tar, a/*.tar, a/{000..012}.tar, s3://...")
    add("--format", choices=("tar", "parquet"), default="tar", help="of the shards; parquet is a Hugging Face dataset")
    add("--shard-megabytes", type=float, default=500.0, help="of input files in a shard, at most (default: 500)")
    add("--workers", type=int, default=default_workers(), help="processes, one shard each (default: cores)")
    add("--audio", choices=("keep", "flac", "opus", "pcm16"), default="keep", help="what is stored (default: as it is)")
    add("--sample-rate", type=int, metavar="HZ", help="of what --audio writes, mono (default: 16000)")
    add("--segment-seconds", type=float, metavar="S", help="cut into segments of this length; the last one is shorter")
    add(
        "--part",
        metavar="3/16",
        help="share of this process, if several pack into --out; default: torchrun's or srun's",
    )
    add("--check", action="store_true", help="decode every clip, to find damage beyond the header")
    return parser


if __name__ == "__main__":
    sys.exit(main())
