"""Players: an excerpt as FLAC and its log-mel as PNG, inside the page, or in files beside a page of many."""

import base64
import html
import io
import re
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile

from src.atomic import publish_folder
from src.errors import UserError

SAMPLE_RATE = 16000
MOST_EMBEDDED_BYTES = 4e6  # of all excerpts and pictures of a page; more go to files beside it
_DYNAMIC_RANGE_DB = 80.0
_PICTURE_COLUMNS = 480


def encode(waveform: np.ndarray) -> bytes:
    """FLAC, 16 bits. waveform: (T,) at 16 kHz, in [-1, 1]."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def picture(waveform: np.ndarray) -> bytes:
    """The log-mel as the encoder computes it, as a PNG of 64 rows, 80 dB. waveform: (T,) at 16 kHz."""
    import torch
    from matplotlib.image import imsave

    from src.models.log_mel import LogMel

    log_mel = LogMel()(torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None])[0][0].numpy()
    step = -(-log_mel.shape[1] // _PICTURE_COLUMNS)
    log_mel = np.maximum.reduceat(log_mel, range(0, log_mel.shape[1], step), axis=1)
    file, top = io.BytesIO(), float(log_mel.max())
    rounded = np.round(log_mel / 2) * 2  # steps of 2 dB look the same and make half the file
    imsave(file, rounded, vmin=top - _DYNAMIC_RANGE_DB, vmax=top, cmap="magma", origin="lower", format="png")
    return file.getvalue()


def player(audio: str, image: str, name: str, seconds: float) -> str:
    """A log-mel beside an `<audio>` element; both load when they are needed.

    Args:
        audio, image: URLs. name: of the sound, for screen readers. seconds: its length.
    """
    name = html.escape(name)
    return (
        f'<span class="sound"><img loading="lazy" width="240" height="64" alt="log-mel of {name}, {seconds:.1f} s" '
        f'src="{image}"><audio controls preload="none" aria-label="{name}" src="{audio}"></audio></span>'
    )


def embedded_player(waveform: np.ndarray, name: str) -> str:
    """A player whose excerpt and picture are in the page."""
    audio, image = data_url(encode(waveform), "audio/flac"), data_url(picture(waveform), "image/png")
    return player(audio, image, name, len(waveform) / SAMPLE_RATE)


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


class Sounds:
    """The excerpts of a page, in the order in which they are added.

        with scratch_folder(page.parent) as scratch:
            sounds = Sounds(page, scratch)
            sounds.add(waveform, "dog.wav")
            text = ... sounds.player(0) ...
            sounds.publish()

    Args:
        page: the file to be written; many sounds go to the folder `<stem>.files` beside it.
        scratch: a temporary folder in the same folder.

    Raises:
        UserError: the folder for the files holds something else.
    """

    def __init__(self, page: Path, scratch: Path) -> None:
        self.folder, self._scratch, self._bytes = page.with_name(f"{page.stem}.files"), scratch, 0
        self._names: list[tuple[str, float]] = []
        others = [path.name for path in self.folder.glob("*") if not re.fullmatch(r"\d+\.(flac|png)", path.name)]
        if others:
            raise UserError(f"{self.folder} holds other files ({others[0]}); choose another name for {page}")

    def add(self, waveform: np.ndarray, name: str) -> int:
        """The number of the sound. waveform: (T,) at 16 kHz."""
        number = len(self._names)
        for suffix, content in (("flac", encode(waveform)), ("png", picture(waveform))):
            self._file(number, suffix).write_bytes(content)
            self._bytes += len(content)
        self._names.append((name, len(waveform) / SAMPLE_RATE))
        return number

    @property
    def embedded(self) -> bool:
        return self._bytes <= MOST_EMBEDDED_BYTES

    def urls(self, number: int) -> tuple[str, str]:
        """Of the excerpt and of the picture, when all sounds are added."""
        if not self.embedded:
            return tuple(quote(f"{self.folder.name}/{self._file(number, each).name}") for each in ("flac", "png"))  # type: ignore[return-value]
        kinds = {"flac": "audio/flac", "png": "image/png"}
        return tuple(data_url(self._file(number, each).read_bytes(), kind) for each, kind in kinds.items())  # type: ignore[return-value]

    def player(self, number: int) -> str:
        return player(*self.urls(number), *self._names[number])

    def publish(self) -> None:
        """Put the files beside the page, if they are not in it; those of an earlier page of that name go."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self.embedded:
            publish_folder(self._scratch, self.folder)

    def _file(self, number: int, suffix: str) -> Path:
        return self._scratch / f"{number:05}.{suffix}"
