"""The audio column of a Hugging Face dataset: encoded bytes, paths, or decoded arrays."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from src.audio.arrays import to_mono
from src.audio.decode import AudioError, Encoded
from src.errors import UserError

_ARRAY = {"array", "sampling_rate"}  # of a clip that was decoded before it was saved


def undecoded(dataset: Any, column: str) -> Any:
    """The dataset with {"bytes", "path"} in its audio column, or {"array", "sampling_rate"} as it is.

    Raises:
        UserError: the column holds something else.
    """
    import datasets

    feature = dataset.features[column] if dataset.features else None  # unknown for some streams
    if _holds_arrays(feature):
        return dataset if isinstance(dataset, datasets.IterableDataset) else dataset.with_format("numpy")
    encoded = isinstance(feature, dict) and set(feature) >= {"bytes", "path"}
    text = isinstance(feature, datasets.Value) and feature.dtype.removeprefix("large_") in ("string", "binary")
    if feature is None or encoded or text or isinstance(feature, datasets.Audio):
        return dataset.cast_column(column, datasets.Audio(decode=False))
    found = "lists of numbers without a sample rate" if hasattr(feature, "feature") else str(feature)
    raise UserError(
        f"audio_column={column} holds {found}; it must hold audio (encoded, or paths of files) or "
        "{array, sampling_rate}"
    )


def _holds_arrays(feature: Any) -> bool:
    return isinstance(feature, dict) and set(feature) >= _ARRAY


class AudioColumn:
    """The encoded clips of a map-style dataset, and their file names, which are known without reading the audio.

    Args:
        dataset: as `undecoded` returns it. folder: that relative paths in the column start from; None for the current.
    """

    def __init__(self, dataset: Any, column: str, folder: Path | None) -> None:
        if dataset.column_names != [column]:
            dataset = dataset.select_columns([column])
        self.dataset, self.column, self.folder = dataset, column, folder
        flat, name = dataset.flatten(), f"{column}.path"
        known = name in flat.column_names
        self._paths = flat.select_columns([name]).with_format("arrow")[:][name].combine_chunks() if known else None
        feature = dataset.features[column]
        self._integers: str | None = None  # what they are, which rows do not tell
        if _holds_arrays(feature):
            inner = feature["array"]
            while hasattr(inner, "feature"):
                inner = inner.feature
            self._integers = inner.dtype if "int" in inner.dtype else None

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, row: int) -> str:
        """The row index, followed by the file name if the dataset keeps it."""
        path = self._paths[row].as_py() if self._paths is not None else None
        return f"{row}:{Path(path).name}" if path else str(row)

    def read(self, row: int) -> Encoded:
        """Raises AudioError: as `encoded_clip`; no such file."""
        clip = encoded_clip(self.dataset[row][self.column], self._integers)
        if isinstance(clip, bytes) or self.folder is None or Path(clip).is_absolute():
            return clip
        places = [self.folder / clip, Path(clip)]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise AudioError(f"there is no file {clip} in {self.folder}")
        return found


def encoded_clip(audio: dict[str, Any] | None, integers: str | None = None) -> Encoded:
    """The bytes in a row's audio column, or its path if there are no bytes; an array as the bytes of a WAV.

    Args:
        integers: the type of the array's samples, if they are integers.

    Raises:
        AudioError: the row has none of them; an array that is not audio.
    """
    audio = audio or {}
    if audio.get("array") is not None:
        array = np.asarray(audio["array"])
        return _as_wav(array.astype(integers) if integers else array, int(audio["sampling_rate"]))
    if audio.get("bytes") is not None:
        return audio["bytes"]
    if not audio.get("path"):
        raise AudioError("no audio in this row")
    return Path(audio["path"])


def _as_wav(samples: np.ndarray, sample_rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, to_mono(samples), sample_rate, format="WAV", subtype="FLOAT")
    return file.getvalue()
