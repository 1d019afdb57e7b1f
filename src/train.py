"""Train, validate, test or predict.

    python -m src.train fit --config configs/quickstart.yaml
    python -m src.train fit --config configs/pretrain/base.yaml --config configs/data/folder.yaml data.path=/my/audio
    python -m src.train fit --config configs/classify/linear.yaml data.path=/my/sounds
    python -m src.train predict --config runs/linear/config.yaml data.test.path=/new/sounds

Config files are merged from left to right, then `key=value` overrides (also `--key value`) are applied, then `${...}`
is resolved. Exit status: 0 success; 1 a process of the run died, or predict could not read some clips; 2 user error,
explained in one sentence; 128 + signal if stopped by a signal and saved.
"""

import argparse
import logging
import os
import sys

from src.command_line import new_parser
from src.config.files import describe_keys, load_config, to_yaml
from src.config.settings import Config
from src.errors import UserError, exit_status
from src.memory import keep_freed_memory
from src.verbosity import VERBOSE, level, set_level

COMMANDS = {
    "fit": "pretrain an encoder, or train a classifier (configs/classify)",
    "validate": "loss of a pretraining checkpoint on data.validation",
    "test": "on data.test: loss of a pretraining checkpoint, or report of a classifier",
    "predict": "on data.test: embeddings of an encoder (as src.embed writes), or predictions of a classifier (CSV)",
}


def main(arguments: list[str] | None = None) -> int:
    return exit_status(lambda: command(sys.argv[1:] if arguments is None else arguments))


def command(arguments: list[str]) -> int:
    options, overrides = parse(arguments)
    set_level(options.verbosity)
    config = load_config(options.config, overrides)
    if options.print_config:
        print(to_yaml(config), end="")
        return 0
    return run(config, options)


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the command. torch, timm and lightning are imported only from here on."""
    logger = logging.getLogger("src")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setLevel(level())  # the run's log.txt gets everything
    logger.handlers = [terminal] if not int(os.environ.get("LOCAL_RANK", 0)) else []

    from src.training.distributed.launch import run_processes, starts_its_own, take_from_launcher

    keep_freed_memory()
    take_from_launcher(config.trainer)
    if options.command == "fit" and not options.plan and starts_its_own(config.trainer):
        return run_processes(options.arguments, config.trainer)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO if level() == VERBOSE else logging.WARNING)
    return pretraining(config, options) if config.classify is None else classification(config, options)


def pretraining(config: Config, options: argparse.Namespace) -> int:
    """Fit, validate, test or predict with an encoder; returns the exit status."""
    from src.pretraining import run

    if options.command == "predict":
        return embed_test_clips(config, options.checkpoint)
    if options.command != "fit":
        return run.evaluate(config, options.command, options.checkpoint)
    if options.plan:
        print(run.plan_run(config, run.prepare_data(config)))
        return 0
    return run.fit(config, options.resume)


def embed_test_clips(config: Config, checkpoint: str | None) -> int:
    """Embeddings of `data.test` by `src.embed`, into a new embeddings.parquet, embeddings-2.parquet, ...

    They go to the run folder of the checkpoint, or to the current folder if it belongs to no run.
    """
    from src import embed
    from src.data.sources.open import open_any
    from src.training.run_folder import checkpoint_of, results_folder

    path, test = checkpoint_of(config.runs_folder, config.name, checkpoint), config.data.test
    if test is None:
        raise UserError("data.test is not set; predict needs it, for example data.test.path=FOLDER")
    number, target = 1, results_folder(path) / "embeddings.parquet"
    while target.exists():
        number += 1
        target = target.with_name(f"embeddings-{number}.parquet")
    columns = [
        f"--audio-column={test.audio_column}",
        *([f"--label-column={test.label_column}"] * bool(test.label_column)),
    ]
    words = [f"--encoder={path}", f"--out={target}", f"--split={test.split}", *columns, "--", test.path]
    return embed.run(embed.parse(words), [open_any(test)])


def classification(config: Config, options: argparse.Namespace) -> int:
    """Fit, test or predict with a classifier; returns the exit status."""
    from src.classification import predict, run

    if options.plan or options.command == "validate":
        raise UserError("a classifier supports fit, test and predict, without --plan; fit includes validation")
    if options.command == "predict":
        return predict.predict(config, options.checkpoint)
    if options.command == "test":
        return run.test(config, options.checkpoint)
    return run.fit(config, options.resume)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into options and `key=value` overrides."""
    options, rest = parser().parse_known_args(arguments)
    options.arguments = arguments
    return options, join_overrides(rest)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    commands = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
    settings = "\n".join(f"  {key}\n      {text}" for key, text in describe_keys().items())
    parser = new_parser("train", f"{(__doc__ or '').strip()}\n\ncommands:\n{commands}", f"settings:\n{settings}")
    parser.add_argument("command", choices=tuple(COMMANDS), metavar="{" + ",".join(COMMANDS) + "}")
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML file of settings; repeatable"
    )
    parser.add_argument(
        "--resume", metavar="auto|CHECKPOINT", help="fit: resume from a checkpoint; auto: the run's newest"
    )
    parser.add_argument("--plan", action="store_true", help="fit: print the plan and stop")
    parser.add_argument("--checkpoint", metavar="best|last|PATH", help="validate, test, predict: checkpoint to use")
    parser.add_argument(
        "--print-config", "--print_config", action="store_true", help="print the resolved settings and stop"
    )
    return parser


def join_overrides(words: list[str]) -> list[str]:
    """Join `--key value` to `key=value`; other words are unchanged.

    Raises:
        UserError: the last key has no value.
    """
    joined: list[str] = []
    key: str | None = None
    for word in words:
        if key is not None:
            joined.append(f"{key}={word}")
            key = None
        elif word.startswith("--") and "=" not in word:
            key = word.removeprefix("--")
        else:
            joined.append(word)
    if key is not None:
        raise UserError(f"--{key} has no value; write {key}=VALUE")
    return joined


if __name__ == "__main__":
    sys.exit(main())
