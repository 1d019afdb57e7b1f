"""The one walk through folders of audio: follows links, and says what it could not read or passed over."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from src.audio.containers import CONTAINER_SUFFIXES, HAS_AV, INSTALL
from src.audio.decode import SUFFIXES
from src.errors import UserError

_CONVERTIBLE = (
    ".3gp", ".aac", ".ac3", ".amr", ".ape", ".asf", ".avi", ".dff", ".dsf", ".dts", ".eac3", ".flv", ".m4a", ".m4b",
    ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpc", ".mpeg", ".mpg", ".pcm", ".ra", ".raw", ".rm", ".spx", ".tta",
    ".voc", ".weba", ".webm", ".wma", ".wmv", ".wv",
)  # fmt: skip


class Walk(NamedTuple):
    """files: audio, sorted by path. unreadable: (path, reason) of folders and links that cannot be followed.
    others: how many files of each other suffix, in lower case."""

    files: list[Path]
    unreadable: list[tuple[Path, str]]
    others: Counter[str]


def find_audio(root: Path) -> Walk:
    """Audio files under a folder. Hidden files are left out; other kinds of sound are counted in a warning.

    Raises:
        UserError: there are none.
    """
    found = walk(root)
    sound = passed_over(found.others)
    if not found.files:
        reasons = [f"; {path} cannot be read ({reason})" for path, reason in found.unreadable[:1]]
        others = [] if sound else [f"; it has {_count(found.others)}"] if found.others else []
        raise UserError(
            f"{root} holds no audio files ({', '.join(SUFFIXES)}){''.join([*reasons, *others])}"
            + (f"; {sound}" if sound else "")
        )
    if sound:
        warnings.warn(f"{root}: {sound}", stacklevel=2)
    return found


def walk(root: Path) -> Walk:
    """All files under a folder, linked ones too. A folder inside itself, by way of a link, is entered once."""
    result = Walk([], [], Counter())
    _visit(root, frozenset(), result)
    result.files.sort()
    return result


def _visit(folder: Path, above: frozenset[tuple[int, int]], result: Walk) -> None:
    try:
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in above:
            return
        above |= {(stat.st_dev, stat.st_ino)}
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        result.unreadable.append((folder, error.strerror or str(error)))
        return
    for entry in entries:
        if is_hidden(entry.name):
            continue
        suffix = Path(entry.name).suffix.lower()
        try:
            if entry.is_dir():
                _visit(folder / entry.name, above, result)
            elif suffix not in SUFFIXES:
                result.others[suffix] += 1
            elif entry.is_file():
                result.files.append(folder / entry.name)
            else:
                result.unreadable.append((folder / entry.name, "a link to nothing, or not a file"))
        except OSError as error:  # a link that leads to itself
            result.unreadable.append((folder / entry.name, error.strerror or str(error)))


def is_hidden(name: str) -> bool:
    """Is it a hidden file or folder, or what a Mac puts beside files (`._a.wav`, `.DS_Store`, `__MACOSX`)?"""
    return name.startswith(".") or name == "__MACOSX"


def is_hidden_member(name: str) -> bool:
    """As `is_hidden`, for a path within a tar: of any of its parts."""
    return any(is_hidden(part) for part in name.split("/") if part not in (".", ".."))


def passed_over(suffixes: Iterable[str]) -> str:
    """What to do about files of sound that libsndfile does not read; "" without any. suffixes: of files, counted."""
    counts = Counter(suffixes)
    readable = Counter({suffix: counts[suffix] for suffix in counts if suffix in CONTAINER_SUFFIXES and not HAS_AV})
    sound = Counter({suffix: counts[suffix] for suffix in counts if suffix in _CONVERTIBLE and suffix not in readable})
    parts = [f"{_count(readable)} passed over; to read these {readable.total()}: {INSTALL}"] if readable else []
    if sound:
        parts.append(f"{_count(sound)} passed over; convert them, for example with: ffmpeg -i IN{min(sound)} OUT.flac")
    return "; ".join(parts)


def _count(suffixes: Counter[str]) -> str:
    named = [f"{count} {suffix or 'without a suffix'}" for suffix, count in suffixes.most_common(5)]
    more = len(suffixes) - len(named)
    return f"files of other kinds ({', '.join(named)}{f', and {more} more kinds' if more > 0 else ''})"
