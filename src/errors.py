"""The error type for user mistakes, and exit statuses."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake that the user can fix: one sentence with the key, file or option, the value found and what to do.

    Commands print it and exit with status 2.
    """


def exit_status(run: Callable[[], int], interrupted: str = "interrupted") -> int:
    """The result of `run`; 2 after a UserError, 130 after Ctrl-C, each with a message on stderr."""
    try:
        return run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message: the closest of `names`, and all of them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} Available: {', '.join(names)}" if hint else f"; available: {', '.join(names)}"
