"""Embeddings of any audio: files, folders, tar shards, Hugging Face datasets.

    python -m src.embed my/sounds --encoder runs/quickstart --out sounds.parquet
    python -m src.embed data/demo --split test --label-column label --encoder dasheng_base.pt --out demo.npz
    python -m src.embed talk.mp3 --level frame --layers 6,last --encoder encoder --out talk.parquet

One row per clip: path, seconds, label, embedding; at frame level, one row per token (40 ms), with the time of its
center; clips that `python -m src.pack --segment-seconds` cut also have parent and start_seconds. An interrupted run
resumes when the same command is run again.

As many processes as there are write a folder of parquet parts, which pandas, pyarrow, `datasets` and `src.search` open
as one: under torchrun or srun, or each with its --part:

    torchrun --nproc-per-node=8 -m src.embed '/audio/{0000..0099}.tar' --encoder runs/quickstart --out embeddings
    srun python -m src.embed '/audio/{0000..0099}.tar' --encoder runs/quickstart --out s3://bucket/embeddings
    python -m src.embed my/sounds --encoder runs/quickstart --out embeddings --part 3/16

Exit status: 0 done, 1 done but some inputs could not be read (listed in <out>.skipped.csv), 2 usage error, 130
interrupted. Of several processes, the last one to finish lists what could not be read.

In Python, for a file or an array:

    from src.encoders.load import load_encoder
    from src.embed import embed
    vector = embed("dog.wav", load_encoder("runs/quickstart"))
"""

import argparse
import contextlib
import os
import shlex
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.command_line import new_parser
from src.errors import UserError, exit_status
from src.share import Share, default_workers, find_share, local_rank
from src.skipped import report_skipped
from src.verbosity import say, suggest

if TYPE_CHECKING:
    import numpy as np

    from src.data.sources.source import Source
    from src.evaluation.collection import Settings
    from src.models.vit import AudioViT, Layer, Pooling

POOLINGS = ("mean", "max", "mean_std", "mean_max")


def embed(
    audio: "str | Path | np.ndarray",
    encoder: "AudioViT",
    sample_rate: int | None = None,
    layers: "Sequence[Layer]" = (None,),
    pooling: "Pooling" = "mean",
    level: str = "clip",
) -> "np.ndarray":
    """The embedding of one clip, (D,) fp32; at level "frame" (N, D), with times `encoder.token_times(N)`.

    Args:
        audio: a file of any length, or samples (T,) or (channels, T) in [-1, 1].
        sample_rate: of an array, in Hz.
        layers: blocks whose outputs are concatenated; None is the last one, normalized.
        pooling: as `src.models.vit.pool`; not used at frame level.

    Raises:
        AudioError: a file or array that is not valid audio. ValueError: an array without its rate; no such layer.
    """
    import torch

    from src.audio.arrays import to_mono_16k
    from src.audio.decode import decode_blocks
    from src.audio.levels import Levels, warn_of_oddities
    from src.models.long_clips import encode_long_clip, pool_chunks

    if missing := [layer for layer in layers if layer is not None and not 0 <= layer <= encoder.depth]:
        raise UserError(f"layers {missing} are not blocks; use 0 (the patch embedding) to {encoder.depth}, or None")
    levels, read = Levels(), None
    if isinstance(audio, str | Path):
        read = partial(Path, audio)
        blocks: Callable[[], Iterable[np.ndarray]] = partial(decode_blocks, Path(audio))
    elif sample_rate is None:
        raise ValueError("an array needs its sample_rate, in Hz")
    else:
        blocks = partial(list, [to_mono_16k(audio, sample_rate)])
    chunks = encode_long_clip(encoder, lambda: levels.watch(blocks()), layers)
    embedding = torch.cat(list(chunks)).float() if level == "frame" else pool_chunks(chunks, pooling)
    if what := levels.oddity(read):
        warn_of_oddities([(str(audio) if read else "the array", what)])
    return embedding.cpu().numpy()


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run(options), "interrupted; run the same command again to resume", options.verbosity)


def run(options: argparse.Namespace, sources: "list[Source] | None" = None) -> int:
    """Run the command; torch and other heavy packages are imported here."""
    from src.data.sources.open import open_inputs
    from src.encoders.load import load_encoder
    from src.evaluation.collection import Settings
    from src.evaluation.embeddings import parse_layers

    check_options(options)
    share = find_share(options.part)
    in_parts = is_folder(options.out)
    if share.size > 1 and not in_parts:
        raise UserError(f"--out {options.out} is one file, but {share.size} processes write it; write --out FOLDER")
    if sources is None:
        sources = open_inputs(options.inputs, options.split, options.audio_column, options.label_column)
    encoder = load_encoder(options.encoder).to(find_device(options.device))
    layers = parse_layers(options.layers.split(","), encoder.depth)
    settings = Settings(layers, options.pooling, options.level, options.batch_seconds)
    if in_parts:
        return write_folder(options, encoder, sources, settings, share)
    return write_file(options, encoder, sources, settings)


class Speed:
    """Advances a progress bar. seconds: of audio so far."""

    def __init__(self, bar: Callable[..., None]) -> None:
        self.seconds, self._bar, self._started = 0.0, bar, time.monotonic()

    def __call__(self, clips: int, seconds: float) -> None:
        self.seconds += seconds
        speed = self.seconds / 60 / (time.monotonic() - self._started)
        self._bar(clips, f"{speed:.2f} audio-hours/minute")

    def __str__(self) -> str:
        return f"{self.seconds / 3600:.2f} h of audio in {(time.monotonic() - self._started) / 60:.1f} minutes"


def write_file(
    options: argparse.Namespace, encoder: "AudioViT", sources: "Sequence[Source]", settings: "Settings"
) -> int:
    """One file, by one process."""
    from src.evaluation.collection import embed_collection
    from src.evaluation.embedding_file import EmbeddingFile
    from src.progress import progress_bar

    file = EmbeddingFile(Path(options.out), describe(options.encoder, encoder, settings), describe_inputs(options))
    with contextlib.closing(file):
        with progress_bar("", sum(len(source) for source in sources), done=len(file.done)) as bar:
            speed = Speed(bar)
            bad = embed_collection(encoder, sources, file, settings, options.workers, speed)
        status = report_again(bad, options.out)
        num_clips, num_rows = len(file.done), file.finish()
    written = f"{num_clips} clips" if options.level == "clip" else f"{num_rows} tokens of {num_clips} clips"
    say(f"{written} in {options.out}; {speed}")
    if options.out.endswith(".parquet"):
        suggest_search(options.out)
    return status


def write_folder(
    options: argparse.Namespace, encoder: "AudioViT", sources: "Sequence[Source]", settings: "Settings", share: Share
) -> int:
    """A folder of parts, by as many processes as there are. The last one to finish lists what could not be read."""
    from src.evaluation.collection import Embedding
    from src.evaluation.embedding_folder import EmbeddingFolder, empty_table
    from src.progress import progress_bar

    about = describe(options.encoder, encoder, settings), describe_inputs(options)
    folder = EmbeddingFolder(options.out, sources, *about)
    width = encoder.embed_dim * len(settings.layers)
    width *= 2 if options.level == "clip" and "_" in options.pooling else 1
    empty = empty_table(width, options.level == "frame", folder.segmented)
    with progress_bar("", folder.count(share)) as bar:
        speed = Speed(bar)
        with Embedding(encoder, settings, options.workers, speed) as embedding:
            folder.write(embedding, empty, share)
    if missing := folder.missing():
        num_parts = len(folder.parts)
        say(f"{share}: {speed}; {num_parts - len(missing)} of {num_parts} files in {options.out} are finished")
        return 0
    num_rows, bad = folder.summary()
    status = report_again(bad, options.out.rstrip("/") if "://" not in options.out else "embeddings")
    say(f"{num_rows} rows in {options.out}; {speed}")
    suggest_search(options.out)
    return status


def suggest_search(index: str) -> None:
    suggest(f"python -m src.search QUERY.wav --index {shlex.quote(index)} --html neighbors.html")


def is_folder(out: str) -> bool:
    return "://" in out or out.endswith("/") or Path(out).is_dir() or not Path(out).suffix


def report_again(bad: list[tuple[str, str]], out: str) -> int:
    """List what could not be read, in place of what an earlier run did; returns the exit status."""
    skipped = Path(out + ".skipped.csv")
    skipped.unlink(missing_ok=True)
    return report_skipped(bad, skipped)


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError: a number out of range."""
    if not 0 < options.batch_seconds < float("inf"):
        raise UserError(f"--batch-seconds {options.batch_seconds} is out of range; it must be above 0")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers} is out of range; it must be at least 1")


def describe(path: str, encoder: "AudioViT", settings: "Settings") -> dict[str, Any]:
    """The settings stored in the output: how its embeddings were made."""
    from src.evaluation.embeddings import fingerprint

    return {
        "encoder": os.path.abspath(path) if Path(path).exists() else path,  # noqa: PTH100, keeps links
        "weights": fingerprint(encoder),
        "level": settings.level,
        "layers": list(settings.layers),
        "pooling": settings.pooling,
    }


def describe_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """What a resumed run must read again, so that no row comes from anywhere else."""
    relative = [text for text in options.inputs if "://" not in text and not Path(text).is_absolute()]
    return {
        "inputs": options.inputs,
        "in folder": str(Path.cwd()) if relative else "",
        "split": options.split,
        "audio column": options.audio_column,
        "label column": options.label_column,
    }


def find_device(name: str) -> str:
    """The device for `--device`; the processes of a machine take its GPUs in turn.

    Raises:
        UserError: cuda without a GPU.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device cuda, but torch finds no GPU; leave the option out")
    return f"cuda:{local_rank() % torch.cuda.device_count()}" if has_gpu and name != "cpu" else "cpu"


def parse(arguments: list[str]) -> argparse.Namespace:
    return parser().parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = new_parser("embed", __doc__)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, .tar (also a/*.tar, a/{000..012}.tar), dataset")
    add(
        "--encoder",
        required=True,
        metavar="PATH",
        help="anything load_encoder reads: run, checkpoint, export, hf://owner/name",
    )
    add("--out", required=True, metavar="FILE", help=".parquet or .npz; or a folder of parquet parts, also a URL")
    add("--level", choices=("clip", "frame"), default="clip", help="one row per clip, or one row per token")
    add("--layers", default="last", help="blocks to read, such as 10 or 6,last; several are concatenated")
    add("--pooling", choices=POOLINGS, default="mean", help="how the tokens of a clip become one embedding")
    add("--split", default="train", help="of a Hugging Face dataset")
    add("--audio-column", default="audio", help="of a Hugging Face dataset")
    add("--label-column", help="of a Hugging Face dataset; class folders need no option")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--batch-seconds", type=float, default=30.0, help="padded audio per batch")
    add("--workers", type=int, default=default_workers(), help="decoding threads (default: cores)")
    add("--part", metavar="3/16", help="share of this process, if several write --out; default: torchrun's or srun's")
    return parser


class _CallableModule(types.ModuleType):
    """`from src import embed` returns this module, which can also be called like its function `embed`."""

    def __call__(self, *arguments: Any, **options: Any) -> "np.ndarray":
        return embed(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule


if __name__ == "__main__":
    sys.exit(main())
