"""The decoded cache gives what decoding gives, and is either whole or not there."""

import errno
import io
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import soundfile

from src.atomic import one_at_a_time
from src.data import cache as module
from src.data.cache import CachedSource, cache_bytes
from src.data.sources.folder import FolderSource
from src.data.sources.index import cache_root
from src.errors import UserError

STEP = 1 / 32767  # of the stored samples at full scale; rounding is half of it
FLOAT = 1e-6


@pytest.fixture
def folder(tmp_path, write_wav) -> Path:
    for number, peak in enumerate((0.001, 0.5, 1.0, 20.0)):
        write_wav(tmp_path / "clips" / f"{number}.wav", 0.3 + 0.1 * number, peak=peak, seed=number)
    write_wav(tmp_path / "clips" / "44100.wav", 0.5, rate=44100, channels=2)
    return tmp_path / "clips"


def open_folder(folder: Path) -> FolderSource:
    return FolderSource(str(folder))


def close(cached: np.ndarray, decoded: np.ndarray) -> bool:
    rounding = 0.5 * STEP * np.abs(decoded).max() + FLOAT
    return cached.shape == decoded.shape and cached.dtype == np.float32 and np.abs(cached - decoded).max() <= rounding


def test_cached_is_decoded_but_for_16_bit_rounding(folder):
    source = open_folder(folder)
    cached = CachedSource(source)
    assert len(cached) == len(source) == 5
    for i in range(5):
        assert close(cached.waveform(i), source.waveform(i)), source.name(i)
        assert cached.name(i) == source.name(i)
    assert np.abs(cached.waveform(3)).max() == pytest.approx(20.0, abs=20 * STEP)
    np.testing.assert_allclose(cached.seconds, source.seconds, atol=STEP)
    assert cached.fingerprint == source.fingerprint


@pytest.mark.parametrize("start, seconds", [(0.0, 0.1), (0.1, 0.2), (0.25, 5.0), (0.05, None)])
def test_crops_are_slices_of_the_whole(folder, start, seconds):
    cached = CachedSource(open_folder(folder))
    for i in range(len(cached)):
        begin = round(start * 16000)
        end = None if seconds is None else begin + round(seconds * 16000)
        np.testing.assert_array_equal(cached.waveform(i, start, seconds), cached.waveform(i)[begin:end])


def test_its_size_is_as_announced(folder, cache):
    source = open_folder(folder)
    CachedSource(source)
    (file,) = cache.rglob("samples.i16")
    assert file.stat().st_size == pytest.approx(cache_bytes(source), abs=2 * len(source))


def test_it_is_decoded_once_and_again_if_a_file_changes(folder, monkeypatch, write_wav):
    decoded, decode = [], module.decode
    monkeypatch.setattr(module, "decode", lambda file: decoded.append(file) or decode(file))
    CachedSource(open_folder(folder))
    CachedSource(open_folder(folder))
    assert len(decoded) == 5
    samples = write_wav(folder / "1.wav", 0.8, seed=9)
    assert close(CachedSource(open_folder(folder)).waveform(1), samples)


def test_what_was_not_used_for_a_month_goes_when_something_new_is_written(folder, write_wav):
    def folders() -> set[Path]:
        return {each for each in (cache_root() / "decoded").iterdir() if each.is_dir()}

    month_ago = time.time() - 31 * 86400
    CachedSource(open_folder(folder))
    (old,) = folders()
    killed = old.with_name(".half.partial")
    killed.mkdir()
    for each in (old, killed):
        os.utime(each, (month_ago, month_ago))
    CachedSource(open_folder(folder))  # used again
    write_wav(folder / "new.wav", 0.2)
    CachedSource(open_folder(folder))
    assert old in folders() and killed not in folders() and len(folders()) == 2
    os.utime(old, (month_ago, month_ago))
    write_wav(folder / "newer.wav", 0.2)
    CachedSource(open_folder(folder))
    assert old not in folders() and len(folders()) == 2


def test_a_write_that_was_cut_off_is_not_taken(folder, monkeypatch):
    source = open_folder(folder)

    def killed(*names):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            CachedSource(source)
    assert not list(module.cache_root().rglob("samples.i16"))
    cached = CachedSource(source)
    for i in range(5):
        assert close(cached.waveform(i), source.waveform(i))


def test_of_two_writers_the_first_stays_and_its_readers_are_not_disturbed(folder, monkeypatch):
    source = open_folder(folder)
    folder_of = module.cache_root() / "decoded" / source.fingerprint
    first = CachedSource(source)
    before = [first.waveform(i).copy() for i in range(5)]
    inode = (folder_of / "samples.i16").stat().st_ino
    module._store(source, folder_of)  # of a process that did not see it yet
    assert (folder_of / "samples.i16").stat().st_ino == inode
    assert not list(module.cache_root().rglob("*.partial"))
    for i in range(5):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(first)).waveform(i), before[i])


@pytest.mark.parametrize("peak", [1e-35, 1e-9, 1e-5, 0.01, 0.9, 1.0, 3.0, 1e6])
def test_the_error_is_the_clips_peak_over_65534_at_most(tmp_path, peak):
    samples = np.random.default_rng(0).uniform(-peak, peak, 1600).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, "FLOAT")
    cached = CachedSource(open_folder(tmp_path)).waveform(0)
    bound = np.abs(samples).max() / 65534 * 1.01 if peak > 1e-30 else 1e-30
    assert np.abs(cached - samples).max() <= bound
    if peak > 1e-30:
        assert np.abs(cached).max() == pytest.approx(np.abs(samples).max(), rel=1e-6)


def test_without_storing_the_same_clips_are_left_out_and_the_others_decoded(folder):
    (folder / "broken.flac").write_bytes(broken_flac())
    stored, checked = CachedSource(open_folder(folder)), CachedSource(open_folder(folder), store=False)
    assert (checked.bad, checked.bad_paths, len(checked)) == (stored.bad, stored.bad_paths, len(stored))
    assert [name for name, _ in checked.bad] == ["broken.flac"]
    np.testing.assert_allclose(checked.seconds, stored.seconds)
    for i in range(len(checked)):
        np.testing.assert_array_equal(checked.waveform(i), checked._source.waveform(checked._kept[i]))
    assert sum(file.stat().st_size for file in (module.cache_root() / "checked").rglob("samples.i16")) == 0


def broken_flac() -> bytes:
    """A whole header, and damage in the sound."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000, format="FLAC")
    data = bytearray(file.getvalue())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    return bytes(data)


def test_clips_that_do_not_decode_are_left_out_and_named(bad_files):
    source = open_folder(bad_files)
    cached = CachedSource(source)
    assert {"all_nan.wav", "inf.wav", "one_nan.wav", "truncated.flac"} == {name for name, _ in cached.bad} - {
        name for name, _ in source.bad
    }
    by_name = {source.name(i): source for i in range(len(source))}
    assert len(cached) == len(source) - 4 == len(cached.seconds)
    for i in range(len(cached)):
        number = next(n for n in range(len(source)) if source.name(n) == cached.name(i))
        assert close(cached.waveform(i), by_name[cached.name(i)].waveform(number)), cached.name(i)
    again = CachedSource(source)
    assert (again.bad, len(again)) == (cached.bad, len(cached))


def refused_cache():
    return pytest.raises(UserError, match=r"^[^\n]*cannot be written[^\n]*AUDIO_ENCODER_CACHE[^\n]*cache_gigabytes=0$")


def test_no_permission(folder, tmp_path, monkeypatch):
    source = open_folder(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", str(tmp_path / "file"))
    with refused_cache():
        CachedSource(source)


def test_no_room(folder, monkeypatch):
    source = open_folder(folder)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with refused_cache() as caught:
        CachedSource(source)
    assert "No space left" in str(caught.value)
    assert not list(module.cache_root().rglob("*.partial"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_no_room_while_samples_are_written(folder, monkeypatch):
    source = open_folder(folder)
    monkeypatch.setattr(module, "open", lambda *_: open("/dev/full", "wb"), raising=False)  # noqa: SIM115
    with refused_cache() as caught:
        CachedSource(source)
    assert "None" not in str(caught.value)


def test_workers_map_the_file_themselves(folder):
    cached = CachedSource(open_folder(folder))
    waveform = cached.waveform(2)
    pickled = pickle.dumps(cached)
    assert len(pickled) < 20_000  # without samples
    np.testing.assert_array_equal(pickle.loads(pickled).waveform(2), waveform)


def test_one_process_decodes_while_the_others_wait(folder, monkeypatch):
    """Threads, whose locks are as apart as those of processes."""
    calls, decode_all = [], module._decode_all

    def slowly(*arguments):
        calls.append(1)
        time.sleep(0.3)
        return decode_all(*arguments)

    monkeypatch.setattr(module, "_decode_all", slowly)
    with ThreadPoolExecutor(3) as pool:
        opened = list(pool.map(lambda _: CachedSource(open_folder(folder)), range(3)))
    assert len(calls) == 1 and [len(each) for each in opened] == [5, 5, 5]
    assert not [path for path in opened[0]._folder.parent.iterdir() if path.name.endswith((".lock", ".partial"))]


def test_where_one_fails_the_next_does_the_work_and_a_killed_one_holds_up_nobody(folder, monkeypatch):
    decode_all, calls = module._decode_all, []

    def fails_first(*arguments):
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.2)
            raise OSError(errno.ENOSPC, "No space left on device")
        return decode_all(*arguments)

    monkeypatch.setattr(module, "_decode_all", fails_first)
    with ThreadPoolExecutor(2) as pool:
        opened = [pool.submit(CachedSource, open_folder(folder)) for _ in range(2)]
    errors = [each.exception() for each in opened]
    assert sorted(error is None for error in errors) == [False, True] and any(isinstance(e, UserError) for e in errors)

    target = folder.parent / "target"
    holder = """
import pathlib, sys, time
from src.atomic import one_at_a_time
with one_at_a_time(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", holder, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"in\n"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: one_at_a_time(target).__enter__())
        assert wait([waiting], timeout=0.3).not_done
        process.kill()
        process.wait()
        waiting.result(timeout=10)


def test_never_two_at_a_time_though_each_removes_the_lock(tmp_path):
    inside, most = [], []

    def enter(number):
        for _ in range(20):
            with one_at_a_time(tmp_path / "a"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.001)
                inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(8)))
    assert len(most) == 160 and max(most) == 1 and not list(tmp_path.iterdir())
