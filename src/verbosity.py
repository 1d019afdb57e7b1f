"""How much a command says: the option --quiet or --verbose, and what follows from it everywhere."""

import logging
import sys

RESULT = 25  # the level of log messages that are what the command was started for: between INFO and WARNING
QUIET, NORMAL, VERBOSE = RESULT, logging.INFO, logging.DEBUG
logging.addLevelName(RESULT, "RESULT")
_level = NORMAL


def set_level(level: int) -> None:
    """
    Args:
        level: QUIET for results, warnings and errors; NORMAL for progress and the next command, too; VERBOSE for what
            libraries say, and where an error comes from, too.
    """
    global _level
    _level = level


def level() -> int:
    return _level


def say(text: str) -> None:
    """Print a line about what was done; not with --quiet."""
    if _level <= NORMAL:
        print(text)


def suggest(command: str) -> None:
    """Print the next useful command on stderr, so that results can be piped; not with --quiet."""
    if _level <= NORMAL:
        print(f"next: {command}", file=sys.stderr)
