"""Labelled clips for the probes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.audio.decode import decode
from src.config.settings import SourceConfig
from src.data.labelled.probe_clips import load_probe_clips, stratified
from src.errors import UserError
from tests.training.sources import DEMO


@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.integers(1, 300), st.integers(0, 100))
def test_a_part_has_the_shares_of_the_whole(labels, most, seed):
    labels = np.array(labels)
    chosen = stratified(labels, most, seed)
    assert len(chosen) == min(most, len(labels)) and chosen == sorted(set(chosen))
    exact = np.bincount(labels, minlength=5) * len(chosen) / len(labels)
    assert np.abs(np.bincount(labels[chosen], minlength=5) - exact).max() <= 1.5
    assert chosen == stratified(labels, most, seed)


def test_another_seed_takes_other_clips():
    labels = np.repeat([0, 1], 100)
    assert stratified(labels, 50, 0) != stratified(labels, 50, 1)


@pytest.fixture
def demo(demo_table):
    return SourceConfig(kind="huggingface", path=str(DEMO), split="validation", label_column="label")


def test_all_clips_with_their_classes(demo, demo_table, encoded):
    clips, _ = load_probe_clips(demo, demo, 1000)
    assert clips.labels.tolist() == demo_table.column("label").to_pylist()
    assert clips.class_names[:3] == ["kick", "snare", "hihat"] and max(clips.labels) < len(clips.class_names)
    for number in (0, 57, 114):
        np.testing.assert_array_equal(clips.waveforms[number], decode(encoded[number]))


def test_a_part_keeps_waveforms_and_labels_together(demo, demo_table, encoded):
    labels = demo_table.column("label").to_pylist()
    clips, _ = load_probe_clips(demo, demo, 40, seed=3)
    chosen = stratified(np.array(labels), 40, 3)
    assert clips.labels.tolist() == [labels[i] for i in chosen]
    for waveform, number in zip(clips.waveforms, chosen, strict=True):
        np.testing.assert_array_equal(waveform, decode(encoded[number]))


def test_clips_without_label_or_sound_are_left_out(tmp_path, encoded, bad_files):
    broken = (bad_files / "all_nan.wav").read_bytes()
    audio = [{"bytes": data, "path": None} for data in (encoded[0], encoded[1], broken, encoded[2], b"x")]
    pq.write_table(pa.table({"audio": audio, "label": ["dog", None, "dog", "cat", "cat"]}), tmp_path / "a.parquet")
    source = SourceConfig(kind="huggingface", path=str(tmp_path / "a.parquet"), label_column="label")
    clips, _ = load_probe_clips(source, source, 100)
    assert [clips.class_names[label] for label in clips.labels] == ["dog", "cat"]
    np.testing.assert_array_equal(clips.waveforms[1], decode(encoded[2]))


def test_long_clips_are_cut(tmp_path, write_wav):
    audio = []
    for number in range(2):
        write_wav(tmp_path / f"{number}.wav", 11.0)
        audio.append({"bytes": None, "path": str(tmp_path / f"{number}.wav")})
    pq.write_table(pa.table({"audio": audio, "label": [0, 1]}), tmp_path / "a.parquet")
    source = SourceConfig(kind="huggingface", path=str(tmp_path / "a.parquet"), label_column="label")
    clips, _ = load_probe_clips(source, source, 10)
    assert [len(waveform) for waveform in clips.waveforms] == [161280, 161280]  # 10.08 s


def test_a_source_without_labels(sources):
    with pytest.raises(UserError, match="label_column"):
        load_probe_clips(*[SourceConfig(kind="huggingface", path=str(DEMO), split="validation")] * 2, 10)


def test_one_class_is_refused(tmp_path, encoded):
    audio = [{"bytes": encoded[0], "path": None}, {"bytes": encoded[1], "path": None}]
    pq.write_table(pa.table({"audio": audio, "label": ["dog", "dog"]}), tmp_path / "a.parquet")
    source = SourceConfig(kind="huggingface", path=str(tmp_path / "a.parquet"), label_column="label")
    with pytest.raises(UserError, match="1 class"):
        load_probe_clips(source, source, 10)


def test_train_and_test_share_one_numbering(tmp_path, write_wav):
    for place, names in (("train", "bcd"), ("test", "acd")):
        for name in names:
            write_wav(tmp_path / place / name / "0.wav", 0.1)
    with pytest.warns(UserWarning, match=r"check\.train has no clip of a, which check\.test has"):
        train, test = load_probe_clips(*(SourceConfig(path=str(tmp_path / place)) for place in ("train", "test")), 10)
    assert [train.class_names[label] for label in train.labels] == ["b", "c", "d"]
    assert [train.class_names[label] for label in test.labels] == ["a", "c", "d"] and len(train.class_names) == 4
