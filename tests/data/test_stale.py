"""An index that does not fit its shard never plays another sound under a name; what is cached never changes."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from src.audio.decode import AudioError, decode
from src.data.packing.index_shards import index_shards
from src.data.sources import index as index_module
from src.data.sources import shard_index as module
from src.data.sources.index import cache_root
from src.data.sources.shards import ShardSource
from src.errors import UserError

NAMES = ["a.wav", "b.wav", "c.wav", f"{'long' * 40}.wav", "käse 音.wav"]


@pytest.fixture
def sounds(tmp_path, write_wav) -> dict[str, bytes]:
    return {name: Path(_written(write_wav, tmp_path / f"{i}.wav", i)).read_bytes() for i, name in enumerate(NAMES)}


def _written(write_wav, file: Path, seed: int) -> Path:
    write_wav(file, 0.1, seed=seed)
    return file


def write_tar(file: Path, clips: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(file, "w", format=form) as tar:
        for name, data in clips.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def index(shard: Path) -> None:
    assert not [bad for packed in index_shards([str(shard)]) for bad in packed.skipped]


def heard(source: ShardSource) -> dict[str, bytes]:
    found = {}
    for i in range(len(source)):
        try:
            found[source.path(i).split(".tar/", 1)[1]] = source.read(i)
        except AudioError as error:
            assert "does not fit" in str(error)
    return found


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_an_index_that_fits_is_used_whatever_the_names(tmp_path, sounds, form, recwarn):
    write_tar(tmp_path / "x.tar", sounds, form)
    index(tmp_path / "x.tar")
    assert heard(ShardSource(str(tmp_path / "x.tar"))) == sounds
    assert not recwarn.list


def test_a_shard_in_another_order_is_walked_and_not_read_by_the_old_index(tmp_path, sounds):
    write_tar(tmp_path / "x.tar", sounds)
    index(tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", dict(reversed(sounds.items())))
    with pytest.warns(UserWarning, match=r"index of another tar.*pack --index"):
        assert heard(ShardSource(str(tmp_path / "x.tar"))) == sounds


def test_members_that_changed_places_in_the_middle_are_unreadable_not_another(tmp_path, sounds):
    write_tar(tmp_path / "x.tar", sounds)
    index(tmp_path / "x.tar")
    a, b, c, *rest = sounds.items()
    write_tar(tmp_path / "x.tar", dict([a, c, b, *rest]))
    found = heard(ShardSource(str(tmp_path / "x.tar")))
    assert found == {name: data for name, data in sounds.items() if name not in ("b.wav", "c.wav")}


def test_pack_index_notices_a_shard_of_the_same_size(tmp_path, sounds):
    write_tar(tmp_path / "x.tar", sounds)
    index(tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", dict(reversed(sounds.items())))
    os.utime(tmp_path / "x.tar", ns=(1, 1))
    index(tmp_path / "x.tar")
    source = ShardSource(str(tmp_path / "x.tar"))
    assert heard(source) == sounds and source.path(0).endswith(NAMES[-1])


def test_a_shard_that_answers_later_does_not_change_what_others_read(tmp_path, sounds, monkeypatch):
    for number, name in enumerate(NAMES[:2]):
        write_tar(tmp_path / f"{number}.tar", {name: sounds[name], f"more{number}.wav": sounds["c.wav"]})
    walk = index_module.walk_tar

    def one_does_not_answer(shard):
        if shard.endswith("0.tar"):
            raise OSError("no answer")
        return walk(shard)

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "walk_tar", one_does_not_answer)
        first = ShardSource(str(tmp_path / "{0..1}.tar"))
        second = ShardSource(str(tmp_path / "{0..1}.tar"))
    assert [len(first), len(first.missing)] == [2, 1]
    assert first._table._folder == second._table._folder
    later = ShardSource(str(tmp_path / "{0..1}.tar"))
    assert len(later) == 4 and later.fingerprint != first.fingerprint
    assert heard(first) == {"b.wav": sounds["b.wav"], "more1.wav": sounds["c.wav"]}
    assert not list(cache_root().rglob("*.partial"))
    np.testing.assert_array_equal(first.waveform(0), decode(sounds["b.wav"]))


def test_the_index_cache_is_not_written_twice(tmp_path, sounds, monkeypatch):
    write_tar(tmp_path / "x.tar", sounds)
    ShardSource(str(tmp_path / "x.tar"))
    monkeypatch.setattr(module, "_write", None)
    assert len(ShardSource(str(tmp_path / "x.tar"))) == len(NAMES)


def test_without_a_home_the_cache_is_named(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", "/tmp/somewhere")
    assert str(cache_root()).startswith("/tmp/somewhere")
    monkeypatch.delenv("AUDIO_ENCODER_CACHE")
    with pytest.raises(UserError, match="AUDIO_ENCODER_CACHE"):
        cache_root()
