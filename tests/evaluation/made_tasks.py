"""Small tasks in each layout: tones and noise, which the mel floor tells apart."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile

CLASSES = ("high", "low", "noise")


def waveform(label: str, seed: int, seconds: float = 0.3) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    pitch = {"high": 3000.0, "low": 300.0}.get(label)
    tone = np.sin(2 * np.pi * pitch * random.uniform(0.9, 1.1) * time) if pitch else random.normal(size=len(time))
    return (0.2 * tone + 0.01 * random.normal(size=len(time))).astype(np.float32)


def write(file: Path, samples: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, samples, 16000, "PCM_16")


def wav_bytes(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, "PCM_16", format="WAV")
    return file.getvalue()


def labels_task(folder: Path, column: str = "split", per_part: int = 4) -> Path:
    """Our layout, one label a clip; column: split, or fold with four of them."""
    parts = ("train", "valid", "test") if column == "split" else ("1", "2", "3", "4")
    lines = [f"filename,label,{column}"]
    for part in parts:
        for number in range(per_part * len(CLASSES)):
            label = CLASSES[number % len(CLASSES)]
            name = f"{part}-{number}.wav"
            write(folder / name, waveform(label, hash_of(name)))
            lines.append(f"{name},{label},{part}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def hear_task(folder: Path, kind: str, split_mode: str, per_part: int = 4) -> Path:
    """HEAR's layout; kind: multiclass, multilabel or event (multilabel timestamps)."""
    folds = split_mode != "trainvaltest"
    parts = ["fold00", "fold01", "fold02"] if folds else ["train", "valid", "test"]
    for part in parts:
        entries: dict[str, list] = {}
        for number in range(per_part * len(CLASSES)):
            name, seed = f"{part}_{number}.wav", hash_of(f"{part}{number}")
            one, other = CLASSES[number % 3], CLASSES[(number + 1) % 3]
            first, second = waveform(one, seed), waveform(other, seed + 1)
            if kind == "event":
                silence = np.zeros(4800, np.float32)
                samples = np.concatenate([silence, first, silence, second, silence])
                entries[name] = [
                    {"label": one, "start": 300.0, "end": 600.0},
                    {"label": other, "start": 900.0, "end": 1200.0},
                ]
            elif kind == "multilabel":
                samples, entries[name] = first + second, [one, other]
            else:
                samples, entries[name] = first, [one]
            write(folder / "16000" / part / name, samples)
        (folder / f"{part}.json").write_text(json.dumps(entries))
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + "".join(f"{i},{c}\n" for i, c in enumerate(CLASSES)))
    metrics = {"multiclass": ["top1_acc", "mAP"], "multilabel": ["mAP", "d_prime"]}
    metadata = {
        "task_name": folder.name,
        "embedding_type": "event" if kind == "event" else "scene",
        "prediction_type": "multiclass" if kind == "multiclass" else "multilabel",
        "split_mode": split_mode,
        "evaluation": metrics.get(kind, ["event_onset_200ms_fms", "segment_1s_er"]),
        "splits": parts,
    }
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    return folder


def xares_task(folder: Path, names=("wds-audio-train-0.tar", "wds-audio-valid-0.tar", "wds-audio-test-0.tar")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with tarfile.open(folder / name, "w") as tar:
            for number in range(2 * len(CLASSES)):
                label = CLASSES[number % 3]
                audio = wav_bytes(waveform(label, hash_of(f"{name}{number}")))
                for suffix, content in (("wav", audio), ("json", json.dumps({"emotion": label}).encode())):
                    member = tarfile.TarInfo(f"clip{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def hash_of(text: str) -> int:
    """The same in each process, unlike `hash`."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 2**31
