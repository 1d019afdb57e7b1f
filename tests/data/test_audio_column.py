"""What people keep in the audio column of a dataset."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from src.config.settings import SourceConfig
from src.data.sources import audio_column as module
from src.data.sources.hub import HuggingFaceSource, stream_to_disk
from src.errors import UserError

SOUND = (0.5 * np.sin(np.arange(1600) * 0.1)).astype(np.float32)
STEREO = [SOUND.tolist(), (-0.5 * SOUND).tolist()]


def encode(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV")
    return file.getvalue()


def saved(folder, audio: pa.Array) -> SourceConfig:
    pq.write_table(pa.table({"audio": audio}), folder / "x.parquet")
    return SourceConfig("huggingface", str(folder / "x.parquet"))


@pytest.mark.parametrize(
    "array, kind, expected",
    [
        (SOUND, pa.list_(pa.float32()), SOUND),
        (SOUND, pa.list_(pa.float64()), SOUND),
        (np.round(SOUND * 32768).astype(int), pa.list_(pa.int16()), SOUND),
        (STEREO, pa.list_(pa.list_(pa.float32())), 0.25 * SOUND),
    ],
)
def test_arrays_with_their_rate(tmp_path, array, kind, expected):
    rows = [{"path": "a.wav", "array": array, "sampling_rate": 16000}, None]
    config = saved(
        tmp_path, pa.array(rows, pa.struct([("path", pa.string()), ("array", kind), ("sampling_rate", pa.int32())]))
    )
    source = HuggingFaceSource(config)
    assert [source.name(i) for i in range(len(source))] == ["0:a.wav"]
    assert np.abs(source.waveform(0) - expected).max() < 2**-15
    assert [reason for _, reason in source.bad] == ["no audio in this row"]
    dataset, complete = stream_to_disk(SourceConfig("huggingface", config.path, streaming=True), 1e9)
    assert complete and len(dataset) == 2


@pytest.mark.parametrize("kind, values", [(pa.list_(pa.float32()), SOUND), (pa.int64(), 3)])
def test_numbers_without_a_rate_are_refused(tmp_path, kind, values):
    with pytest.raises(UserError, match=r"audio_column=audio holds [^\n]*sampling_rate"):
        HuggingFaceSource(saved(tmp_path, pa.array([values] * 2, kind)))


def test_names_are_known_without_reading_the_audio(tmp_path, monkeypatch):
    rows = [{"bytes": encode(SOUND), "path": f"{i}.wav"} for i in range(5)]
    source = HuggingFaceSource(saved(tmp_path, pa.array(rows)))
    few = HuggingFaceSource(
        SourceConfig("huggingface", "few"), source._column.dataset.select([4, 1])
    )  # an order of its own
    assert (len(source), len(few)) == (5, 2)  # reads the headers
    monkeypatch.setattr(module, "encoded_clip", None)
    monkeypatch.setattr(type(source._column.dataset), "__getitem__", None)
    assert [source.name(i) for i in range(5)] == [f"{i}:{i}.wav" for i in range(5)]
    assert [few.path(i) for i in range(2)] == ["few:train#0:4.wav", "few:train#1:1.wav"]


def test_relative_paths_start_from_the_dataset(tmp_path, monkeypatch):
    (tmp_path / "set" / "sounds").mkdir(parents=True)
    (tmp_path / "set" / "sounds" / "a.wav").write_bytes(encode(SOUND))
    config = saved(tmp_path / "set", pa.array(["sounds/a.wav", "sounds/missing.wav"]))
    monkeypatch.chdir(tmp_path)
    source = HuggingFaceSource(config)
    assert np.abs(source.waveform(0) - SOUND).max() < 2**-15
    assert "missing.wav in" in source.bad[0][1]
