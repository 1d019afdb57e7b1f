"""All commands under one name: `python -m src embed ...`, and `audio-encoder embed ...` once the package is installed.

    audio-encoder --help
    audio-encoder train fit --config configs/quickstart.yaml
    audio-encoder completion bash > ~/.local/share/bash-completion/completions/audio-encoder

Each is the same as `python -m src.train`, `python -m src.embed`, ... `completion` prints a script for bash, zsh or tcsh
that completes commands, options and files (pip install 'audio-encoder[completion]').
Exit status: that of the command; 2 usage error.
"""

import argparse
import importlib
import sys

from src.errors import UserError, exit_status, nearest

COMMANDS = ("train", "embed", "search", "evaluate", "export", "pack")
_SHELLS = ("bash", "zsh", "tcsh")
_FILES = {"FILE", "PATH", "FOLDER", "INPUT", "TASK", "CHECKPOINT", "QUERY", "RESULTS"}  # words in metavars


def main(arguments: list[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return importlib.import_module(f"src.{name}").main(rest)
    return exit_status(lambda: run(name, rest))


def run(name: str, rest: list[str]) -> int:
    if name in ("-h", "--help"):
        print(overview())
    elif name == "completion":
        print(completion(rest[0] if rest else ""))
    else:
        raise UserError(f"there is no command {name}{nearest(name, (*COMMANDS, 'completion'))}")
    return 0


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<11} {summary(name)}" for name in COMMANDS]
    lines.append(f"  {'completion':<11} Print a completion script for {', '.join(_SHELLS)}.")
    return "\n".join(["usage: audio-encoder COMMAND ...  (or: python -m src COMMAND ...)", "", *lines, "",
                      "COMMAND --help shows examples and options."])  # fmt: skip


def summary(name: str) -> str:
    """The first line of a command's docstring."""
    return (importlib.import_module(f"src.{name}").__doc__ or "").partition("\n")[0]


def completion(shell: str) -> str:
    """The script that a shell reads to complete our command lines.

    Raises:
        UserError: an unknown shell; shtab is not installed.
    """
    if shell not in _SHELLS:
        raise UserError(f"completion needs the name of a shell: {', '.join(_SHELLS)}")
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs shtab; pip install 'audio-encoder[completion]'") from None

    whole = argparse.ArgumentParser(prog="audio-encoder")
    commands = whole.add_subparsers()
    for name in COMMANDS:
        own = importlib.import_module(f"src.{name}").parser()
        for action in own._actions:
            if isinstance(action.metavar, str) and _FILES & set(action.metavar.split("|")):
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[own], add_help=False, help=summary(name))
    return shtab.complete(whole, shell)


if __name__ == "__main__":
    sys.exit(main())
