"""The parser that every command starts from: name, help with examples, --quiet and --verbose."""

import argparse
import sys
from pathlib import Path

from src.verbosity import NORMAL, QUIET, VERBOSE


def new_parser(name: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """
    Args:
        name: of the module, such as embed. description: its docstring, with examples.
    """
    installed = Path(sys.argv[0]).stem == "audio-encoder"
    parser = argparse.ArgumentParser(
        prog=f"audio-encoder {name}" if installed else f"python -m src.{name}",
        description=(description or "").strip(),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    either = parser.add_mutually_exclusive_group()
    for short, long, level, text in (
        ("-q", "--quiet", QUIET, "results, warnings and errors only"),
        ("-v", "--verbose", VERBOSE, "also what libraries say, and where an error comes from"),
    ):
        either.add_argument(short, long, dest="verbosity", action="store_const", const=level, default=NORMAL, help=text)
    return parser
