"""The error type for user mistakes, exit statuses, and how commands print warnings."""

import difflib
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from src.verbosity import NORMAL, VERBOSE, level, set_level


class UserError(ValueError):
    """A mistake that the user can fix: one sentence with the key, file or option, the value found and what to do.

    Commands print it and exit with status 2.
    """


def exit_status(run: Callable[[], int], interrupted: str = "interrupted", verbosity: int = NORMAL) -> int:
    """The result of `run`; 2 after a UserError, 130 after Ctrl-C, each with a message on stderr.

    While it runs, our own warnings are one line each; those of libraries go only to the log of a run. With --verbose
    they go to stderr, too, as do the tracebacks of errors.

    Args:
        verbosity: as `set_level`; it is NORMAL again at the end.
    """
    set_level(verbosity)
    warnings.showwarning = show_warning
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    try:
        return run()
    except UserError as error:
        if level() == VERBOSE:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    finally:
        set_level(NORMAL)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    """As `warnings.showwarning`, through the loggers "src" (our own) and "py.warnings" (libraries)."""
    ours = Path(filename).is_relative_to(Path(__file__).parent)
    logging.getLogger("src" if ours else "py.warnings").warning("warning: %s", message)
    if not ours and level() == VERBOSE:
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message: the closest of `names`, and all of them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} Available: {', '.join(names)}" if hint else f"; available: {', '.join(names)}"
