"""Export an encoder to another format.

    python -m src.export runs/quickstart --out encoder
    python -m src.export runs/quickstart --format dasheng --out encoder.pt
    python -m src.export dasheng_base.pt --format onnx --out encoder.onnx

CHECKPOINT is anything that `load_encoder` reads: a run, its checkpoint, an export, an official .pt, hf://owner/name.
Exit status: 0 done, 2 usage error; existing files are never overwritten.
"""

import argparse
import shlex
import sys
from pathlib import Path

from src.command_line import new_parser
from src.errors import UserError, exit_status
from src.verbosity import say, suggest

FORMATS = {
    "folder": "a self-contained folder: weights, settings, decoder, model card; transformers can open it too",
    "dasheng": "one .pt file for the official `dasheng` package",
    "huggingface": "a folder in the format of the official releases on the hub (DashengModel)",
    "onnx": "one .onnx file including the mel front end: waveform in; embedding, tokens, a classifier's logits out",
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run(options), "interrupted; nothing was written", options.verbosity)


def run(options: argparse.Namespace) -> int:
    export(options.checkpoint, options.format, Path(options.out))
    say(f"{options.format}: {options.out}")
    if options.format != "onnx":
        suggest(f"python -m src.embed INPUT --encoder {shlex.quote(options.out)} --out embeddings.parquet")
    return 0


def export(checkpoint: str, form: str, target: Path) -> None:
    """Write `checkpoint` to `target`, in one of FORMATS.

    Raises:
        UserError: as `read_checkpoint` and `write_folder`.
    """
    from src.encoders import dasheng, folder, huggingface
    from src.encoders.load import read_checkpoint
    from src.encoders.save import write_file, write_folder

    if form == "onnx":
        _write_onnx(checkpoint, target)
        return
    stored = read_checkpoint(checkpoint)
    if stored.classifier and form != "folder":
        names = stored.classifier["class_names"]
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        print(
            f"note: the format {form} has no classifier: its head and classes ({listed}) are left out; "
            "--format folder or onnx keeps them",
            file=sys.stderr,
        )
    if form == "folder":
        write_folder(target, lambda partial: folder.write(stored, partial))
    elif form == "huggingface":
        write_folder(target, lambda partial: huggingface.write(stored, partial))
    else:
        write_file(target, lambda partial: dasheng.write(stored, partial))


def _write_onnx(checkpoint: str, target: Path) -> None:
    from src.encoders.load import load_classifier, load_encoder, read_checkpoint
    from src.encoders.onnx import export_onnx, export_onnx_classifier

    if target.exists():
        raise UserError(f"{target} already exists; choose another name or remove it")
    is_classifier = read_checkpoint(checkpoint).classifier is not None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_classifier:
            export_onnx_classifier(load_classifier(checkpoint), target)
        else:
            export_onnx(load_encoder(checkpoint), target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error


def parse(arguments: list[str]) -> argparse.Namespace:
    return parser().parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    formats = "\n".join(f"  {name:<12} {text}" for name, text in FORMATS.items())
    parser = new_parser("export", f"{(__doc__ or '').strip()}\n\nformats:\n{formats}")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--format", choices=tuple(FORMATS), default="folder")
    parser.add_argument("--out", required=True, metavar="PATH", help="a new folder or file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
