"""The one error that users see."""


class UserError(ValueError):
    """A mistake a user can mend: one sentence with the key, file or option, what was found and what to do.

    The commands print it and leave with status 2.
    """
