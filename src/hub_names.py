"""Names on the Hugging Face Hub, `hf://owner/name`: a path without `hf://` is local and never looked up there."""

import re


def hub_repository(path: str) -> str | None:
    """`owner/name` of `hf://owner/name`; None for any other path."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", path)
    return match[1] if match else None


def hint(path: str) -> str:
    """The end of a sentence about a missing path: where it would be on the Hub, if it has the form of a name there."""
    return f"; a repository on the Hugging Face Hub is hf://{path}" if re.fullmatch(r"[\w.-]+/[\w.-]+", path) else ""
