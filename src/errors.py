"""The error type for user mistakes, and exit statuses."""

import sys
from collections.abc import Callable


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
