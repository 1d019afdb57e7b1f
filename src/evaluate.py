"""Score frozen encoders on labeled tasks, beside floors that need no training.

    python -m src.evaluate tasks/esc50 my_tasks --encoder runs/quickstart --method knn,linear --out evaluation
    python -m src.evaluate hear/tasks --encoder dasheng-base peer_module:weights.pt --method mlp --out hear
    python -m src.evaluate --list hear/tasks
    python -m src.evaluate --compare before/results.json after/results.json

A task is a folder in HEAR's layout, with a labels.csv (`filename,label` and `split` or `fold`), of X-ARES tars, or a
Hugging Face dataset; a folder of such folders is all of them. An encoder is anything that load_encoder reads,
`module:path` with the HEAR API, or `module:Class` of X-ARES. Embeddings are computed once and kept in the cache; the
same command continues an interrupted evaluation. Under torchrun, the processes share the tasks. See docs/evaluation.md.
Exit status: 0 done, 1 done but some tasks could not be scored, 2 usage error, 130 interrupted.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.command_line import new_parser
from src.errors import UserError, exit_status
from src.share import cores
from src.verbosity import say

if TYPE_CHECKING:
    from src.evaluation.frozen import Frozen
    from src.evaluation.shared import World

METHOD_NAMES = ("knn", "knn-raw", "linear", "mlp", "xares-mlp", "fewshot")
POOLINGS = ("mean", "max", "mean_std", "mean_max")


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list:
        return exit_status(lambda: print_list(Path(options.list)), verbosity=options.verbosity)
    if options.compare:
        return exit_status(lambda: print_comparison(*map(Path, options.compare)), verbosity=options.verbosity)
    return exit_status(lambda: run(options), "interrupted; run the same command again to continue", options.verbosity)


def run(options: argparse.Namespace) -> int:
    """Run the command; torch and other heavy packages are imported here."""
    from src.evaluation.results import versions, write_results
    from src.evaluation.run import Settings, evaluate
    from src.evaluation.shared import find_world, gather, my_share
    from src.evaluation.tasks.open import find_tasks
    from src.training.tracking import check_online

    if not options.tasks or not options.out:
        raise UserError("give tasks and --out FOLDER; python -m src.evaluate --help shows examples")
    if not 0 < options.batch_seconds < float("inf") or options.jobs < 1:
        raise UserError("--batch-seconds must be above 0 and --jobs at least 1")
    world, out = find_world(), Path(options.out)
    if options.wandb == "online":
        check_online(setting="--wandb")
    paths = find_tasks(options.tasks)
    device = find_local_device(options.device, world)
    encoders = load_encoders(options, device)
    jobs = max(1, options.jobs // world.local_size)
    settings = Settings(options.method, out, options.seed, jobs, device, world.rank == 0, options.batch_seconds)
    rows, errors = evaluate(my_share(paths, world), encoders, settings)
    everything = gather(rows, errors, out, world, paths, [*options.method, *(e.fingerprint for e in encoders)])
    if everything is None:
        return 1 if errors else 0
    rows, errors = everything
    made = {
        name: value for name, value in vars(options).items() if name not in ("jobs", "list", "compare", "verbosity")
    }
    text = write_results(out, {"rows": rows, "errors": errors, "options": made, "versions": versions()})
    print(text)
    say(f"tables: {out / 'results.md'}, {out / 'results.html'}; everything: {out / 'results.json'}")
    if options.wandb != "disabled":
        log_wandb(rows, out, options.wandb, options.encoder)
    return 1 if errors else 0


def find_local_device(name: str, world: "World") -> str:
    """The device for `--device`; of several processes on a machine, each has its own GPU."""
    import torch

    from src.embed import find_device

    device = find_device(name)
    return device if device == "cpu" else f"cuda:{world.local_rank % torch.cuda.device_count()}"


def load_encoders(options: argparse.Namespace, device: str) -> "list[Frozen]":
    """The encoders of the command line, then the floors.

    Raises:
        UserError: as `load_encoder` and `load_peer`; no such layer; two encoders of one name.
    """
    from src.encoders.load import load_encoder
    from src.evaluation.frozen import FrozenViT
    from src.evaluation.peers import load_peer
    from src.evaluation.untrained import floors

    encoders: list[Frozen] = []
    for text in options.encoder:
        if any(text == other.name for other in encoders):
            raise UserError(f"--encoder {text} is given twice")
        if _is_module(text):
            encoders.append(load_peer(text, device))
        else:
            encoder = load_encoder(text).to(device)
            encoders.append(FrozenViT(text, encoder, options.layers, options.pooling))
    return [*encoders, *floors(options.layers, options.pooling, device)]


def _is_module(text: str) -> bool:
    """`package.module:path` or `package.module:Class`, and no file or folder of that name."""
    module, colon, _ = text.partition(":")
    return bool(colon) and not Path(text).exists() and all(word.isidentifier() for word in module.split("."))


def print_list(folder: Path) -> int:
    """Print the known tasks and which of them are in the folder; returns the exit status."""
    from rich.console import Console
    from rich.table import Table

    from src.evaluation.tasks.listing import HEADER, list_tasks

    table = Table(*HEADER, box=None)
    for line in list_tasks(folder):
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 240).print(table, markup=False)
    return 0


def print_comparison(before: Path, after: Path) -> int:
    """Raises: UserError: a file that can't be read; nothing in common."""
    from src.evaluation.compare import pairs, read_rows
    from src.evaluation.page import markdown
    from src.evaluation.table import difference_table

    old, new = read_rows(before), read_rows(after)
    found = []
    for first, second in pairs(old, new):
        title = f"{second} in {after} minus {first} in {before}"
        rows = [row for row in old if row["encoder"] == first], [row for row in new if row["encoder"] == second]
        found.append(difference_table(title, *rows))
    if not any(table.lines for table in found):
        raise UserError(f"{before} and {after} have no task, method and metric in common")
    print(markdown(found, {}))
    return 0


def log_wandb(rows: list[dict[str, Any]], out: Path, mode: str, encoders: list[str]) -> None:
    """Log the rows as a table of a W&B run whose inputs are the encoders."""
    import wandb

    from src.training.tracking import use_models

    keys = ("task", "domain", "encoder", "method", "metric", "score", "interval", "floor")
    run = wandb.init(project="audio-encoder", job_type="evaluation", dir=str(out), mode=mode)  # type: ignore[arg-type]
    data = [[str(row[key]) if key == "interval" else row[key] for key in keys] for row in rows]
    use_models(run, encoders)
    run.log({"evaluation": wandb.Table(columns=list(keys), data=data)})
    run.finish()


def parse(arguments: list[str]) -> argparse.Namespace:
    return parser().parse_args(arguments)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = new_parser("evaluate", __doc__)
    add = parser.add_argument
    add("tasks", nargs="*", metavar="TASK", help="folder of a task or of tasks, dataset on the hub, or known name")
    add("--encoder", nargs="+", default=[], metavar="PATH", help="encoders; the floors are always scored")
    add("--method", type=_several(METHOD_NAMES), default=["knn", "linear"], help=f"some of {', '.join(METHOD_NAMES)}")
    add("--out", metavar="FOLDER", help="gets results.json, .md and .html; scores are kept there")
    add("--layers", type=_words, default=["last"], help="read-outs to choose from on validation: 6,9,last,6+last")
    add("--pooling", type=_several(POOLINGS), default=["mean"], help=f"likewise, of {', '.join(POOLINGS)}")
    add("--seed", type=int, help="of methods that draw; default: 0, and 42 for mlp and xares-mlp as in the originals")
    add("--jobs", type=int, default=min(8, cores()), help="processes that score")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--batch-seconds", type=float, default=30.0, help="padded audio per batch")
    add("--wandb", choices=("disabled", "offline", "online"), default="disabled", help="log the rows as a table")
    add("--list", metavar="FOLDER", help="show which known tasks are in a folder, and where the others are")
    add("--compare", nargs=2, metavar="RESULTS", help="two results.json: paired differences of their encoders")
    return parser


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
