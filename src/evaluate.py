"""Score frozen encoders on labeled tasks, beside floors that need no training.

    python -m src.evaluate tasks/esc50 tasks/my_sounds --encoder runs/quickstart --method knn,linear --out evaluation

A task is a folder with a labels.csv (`filename,label` and `split` or `fold`). Embeddings are computed once and kept in
the cache; the same command continues an interrupted evaluation.
Exit status: 0 done, 1 done but some tasks could not be scored, 2 usage error, 130 interrupted.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from src.errors import UserError, exit_status

if TYPE_CHECKING:
    from src.evaluation.frozen import Frozen

METHOD_NAMES = ("knn", "knn-raw", "linear", "mlp", "xares-mlp", "fewshot")
POOLINGS = ("mean", "max", "mean_std", "mean_max")


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run(options), "interrupted; run the same command again to continue")


def run(options: argparse.Namespace) -> int:
    """Run the command; torch and other heavy packages are imported here."""
    from src.atomic import writing
    from src.evaluation.results import versions
    from src.evaluation.run import evaluate
    from src.evaluation.table import markdown

    out = Path(options.out)
    encoders = load_encoders(options)
    rows, errors = evaluate(options.tasks, encoders, options.method, out, options.seed, options.jobs)
    results = {"rows": rows, "errors": errors, "versions": versions()}
    with writing(out / "results.json") as file:
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    text = markdown(rows)
    with writing(out / "results.md") as file:
        file.write_text(text, encoding="utf-8")
    print(text)
    print(f"everything is in {out / 'results.json'}")
    return 1 if errors else 0


def load_encoders(options: argparse.Namespace) -> "list[Frozen]":
    """The encoders of the command line, then the floors.

    Raises:
        UserError: as `load_encoder`; no such layer; two encoders of one name.
    """
    from src.embed import find_device
    from src.encoders.load import load_encoder
    from src.evaluation.frozen import FrozenViT
    from src.evaluation.untrained import floors

    device = find_device(options.device)
    encoders: list[Frozen] = []
    for path in options.encoder:
        if any(path == other.name for other in encoders):
            raise UserError(f"--encoder {path} is given twice")
        encoder = load_encoder(path).to(device)
        encoders.append(FrozenViT(path, encoder, options.layers, options.pooling, options.batch_seconds))
    return [*encoders, *floors(options.layers, options.pooling)]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m src.evaluate",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("tasks", nargs="+", metavar="TASK", help="folder of a task")
    add("--encoder", nargs="+", default=[], metavar="PATH", help="anything load_encoder reads; floors need none")
    add("--method", type=_several(METHOD_NAMES), default=["knn", "linear"], help=f"some of {', '.join(METHOD_NAMES)}")
    add("--out", required=True, metavar="FOLDER", help="gets results.json and tables; scores are kept there")
    add(
        "--layers",
        type=_words,
        default=["last"],
        help="read-outs to choose from on validation, such as 6,9,last,6+last",
    )
    add("--pooling", type=_several(POOLINGS), default=["mean"], help="likewise, of mean, max, mean_std, mean_max")
    add("--seed", type=int, help="of methods that draw; default: 0, and 42 for mlp and xares-mlp as in the originals")
    add("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes that score")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--batch-seconds", type=float, default=30.0, help="padded audio per batch")
    return parser.parse_args(arguments)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _several(allowed: tuple[str, ...]):
    def read(text: str) -> list[str]:
        words = _words(text)
        if unknown := [word for word in words if word not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is not one of {', '.join(allowed)}")
        return words

    return read


if __name__ == "__main__":
    sys.exit(main())
