"""List skipped inputs in a CSV, with the reasons."""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path


def write_skipped(skipped: Iterable[tuple[str, str]], file: Path) -> None:
    """Write a CSV with columns `path` and `reason`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("path", "reason"), *skipped])


def report_skipped(skipped: list[tuple[str, str]], file: Path) -> int:
    """Write them to `file` and the first few to stderr; returns the exit status: 1 if there are any, else 0."""
    if not skipped:
        return 0
    write_skipped(skipped, file)
    for path, reason in skipped[:5]:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    print(f"{len(skipped)} inputs could not be read, listed in {file}", file=sys.stderr)
    return 1
