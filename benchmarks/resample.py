"""What resampling to 16 kHz costs, and what it changes in the log-mel: soxr's qualities and torchaudio's filters.

    python -m benchmarks.resample my/audio     # a minute; files at 44.1 and 48 kHz are used, others passed over

Up to --files files of each rate, their first 10 s, mono. The resamplers take turns (A B C ... A B C ...); compare the
medians, of this thread's processor time. Cost: milliseconds for a second of audio, and in percent of decoding the same
audio from its file. Error: the difference of the log-mel (the encoder's: 64 bands, dB, 120 dB below the clip's maximum
at least) to that after soxr's VHQ, as root mean square and as the value that 99.9 % of all bands of all frames do not
exceed; with that of rounding to 16 bits, as `pack --audio flac` does, for comparison.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import torchaudio.functional as AF

from benchmarks.report import machine_and_date, table
from src.audio.decode import SAMPLE_RATE, SOXR_QUALITY
from src.data.sources.walk import find_audio
from src.models.log_mel import LogMel

RATES_HZ = (44100, 48000)
SECONDS = 10.0
SHORTEST_SECONDS = 0.5
ROUNDS = 7
REFERENCE = "soxr VHQ"

Resampler = Callable[[np.ndarray, int], np.ndarray]  # (T,) fp32 and its rate, to 16 kHz


def with_soxr(samples: np.ndarray, rate: int, quality: str) -> np.ndarray:
    return soxr.resample(samples, rate, SAMPLE_RATE, quality=quality)


def with_torchaudio(samples: np.ndarray, rate: int, width: int) -> np.ndarray:
    return AF.resample(torch.from_numpy(samples), rate, SAMPLE_RATE, lowpass_filter_width=width).numpy()


RESAMPLERS: dict[str, Resampler] = {
    **{f"soxr {quality}": partial(with_soxr, quality=quality) for quality in ("QQ", "LQ", "MQ", "HQ", "VHQ")},
    "torchaudio, width 6 (its default)": partial(with_torchaudio, width=6),
    "torchaudio, width 64": partial(with_torchaudio, width=64),
}


def read(file: Path) -> np.ndarray:
    """The first seconds, (T,) fp32, at the rate of the file."""
    with soundfile.SoundFile(file) as sound:
        samples = sound.read(round(SECONDS * sound.samplerate), dtype="float32", always_2d=True)
    return samples[:, 0] if samples.shape[1] == 1 else np.ascontiguousarray((samples[:, 0] + samples[:, 1]) / 2)


def find(folder: Path, most: int) -> dict[int, list[Path]]:
    """By rate: files of at least half a second, evenly spread over the folder."""
    found: dict[int, list[Path]] = {rate: [] for rate in RATES_HZ}
    for file in find_audio(folder).files:
        try:
            about = soundfile.info(file)
        except soundfile.LibsndfileError as error:
            print(f"passed over: {file} ({error})")
            continue
        if about.samplerate in found and about.duration >= SHORTEST_SECONDS:
            found[about.samplerate].append(file)
    return {rate: files[:: max(1, len(files) // most)][:most] for rate, files in found.items() if files}


def cost(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def times(files: list[Path], waveforms: list[np.ndarray], rate: int) -> dict[str, float]:
    """Median core seconds of a round over all files: of decoding, and of each resampler."""
    jobs: dict[str, Callable[[], object]] = {"decoding": lambda: [read(file) for file in files]}
    for name, resample in RESAMPLERS.items():
        jobs[name] = partial(lambda resample: [resample(each, rate) for each in waveforms], resample)
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(ROUNDS + 1):
        for name, job in jobs.items():
            seconds = cost(job)
            if number:  # the first round warms up
                taken[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def errors(waveforms: list[np.ndarray], rate: int) -> dict[str, np.ndarray]:
    """By resampler, the absolute difference in dB of all bands of all frames to those after the reference."""
    mel = LogMel()

    def log_mel(samples: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return mel(torch.from_numpy(samples)[None])[0][0].numpy()

    found: dict[str, list[np.ndarray]] = {name: [] for name in (*RESAMPLERS, "rounding")}
    for waveform in waveforms:
        made = {name: resample(waveform, rate) for name, resample in RESAMPLERS.items()}
        exact = made[REFERENCE]
        made["rounding"] = (np.rint(exact * 32768) / 32768).astype(np.float32)
        expected = log_mel(exact)
        for name, samples in made.items():
            found[name].append(np.abs(log_mel(samples[: len(exact)]) - expected).ravel())
    return {name: np.concatenate(each) for name, each in found.items()}


def describe(error: np.ndarray) -> list[str]:
    return [f"{np.sqrt(np.mean(error**2)):.3f}", f"{np.quantile(error, 0.999):.2f}"]


def measure(files: list[Path], rate: int) -> str:
    waveforms = [read(file) for file in files]
    seconds = sum(len(each) for each in waveforms) / rate
    taken, error = times(files, waveforms, rate), errors(waveforms, rate)
    rows = [
        [
            f"**{name}**" if name == f"soxr {SOXR_QUALITY}" else name,
            f"{1000 * taken[name] / seconds:.2f}",
            f"{100 * taken[name] / taken['decoding']:.0f} %",
            *(describe(error[name]) if name != REFERENCE else ["0", "0"]),
        ]
        for name in RESAMPLERS
    ]
    rows.append(["rounding to 16 bits", "", "", *describe(error["rounding"])])
    header = ["to 16 kHz from", "ms per s of audio", "of decoding", "log-mel error, dB RMS", "99.9 %"]
    header[0] += f" {rate / 1000:g} kHz"
    title = f"{len(files)} files, {seconds:.0f} s, decoded in {1000 * taken['decoding'] / seconds:.2f} ms per s"
    return f"{title}\n\n{table(header, rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of audio at 44.1 or 48 kHz")
    parser.add_argument("--files", type=int, default=60, help="of each rate, at most (default: 60)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*passed over")
    found = find(options.folder, options.files)
    if not found:
        raise SystemExit(f"{options.folder} holds no audio at {' or '.join(map(str, RATES_HZ))} Hz")
    print(machine_and_date(), end="\n\n")
    for rate, files in found.items():
        print(measure(files, rate))


if __name__ == "__main__":
    main()
