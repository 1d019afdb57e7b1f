"""One walk for every door: links are followed, loops end, and what is not read is named or counted."""

import os
import random
import tarfile
from pathlib import Path

import pytest
import soundfile

from src.data.packing.manifest import list_clips
from src.data.sources import walk as module
from src.data.sources.folder import FolderSource
from src.data.sources.open import open_inputs
from src.data.sources.shards import ShardSource
from src.data.sources.walk import find_audio, is_hidden_member, walk
from src.errors import UserError


def names(root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in walk(root).files]


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_links_are_followed_and_loops_end(tmp_path):
    make(tmp_path, "set/dog/a.wav", "elsewhere/cat/b.wav", "set/one.flac")
    (tmp_path / "set/cat").symlink_to(tmp_path / "elsewhere/cat")
    (tmp_path / "set/two.flac").symlink_to("one.flac")
    (tmp_path / "set/dog/again").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere/cat/back").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "set") == ["cat/b.wav", "dog/a.wav", "one.flac", "two.flac"]
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "set")
    assert names(linked) == names(tmp_path / "set")


def test_random_trees_give_each_file_once_by_each_way(tmp_path):
    """Against a plain definition: all paths of which no folder occurs twice."""
    for seed in range(20):
        chance, root = random.Random(seed), tmp_path / str(seed)
        folders = [root]
        for i in range(6):
            folders.append(chance.choice(folders) / f"d{i}")
            make(folders[-1], f"{i}.wav", *(["notes.txt", "._x.wav", ".hidden/y.wav"] if chance.random() < 0.5 else []))
        for i in range(4):
            (chance.choice(folders) / f"link{i}").symlink_to(chance.choice(folders))

        def expected(folder: Path, above: list[Path]) -> list[Path]:
            real = folder.resolve()
            if real in above:
                return []
            found = []
            for path in folder.iterdir():
                if path.name.startswith("."):
                    continue
                found += expected(path, [*above, real]) if path.is_dir() else [path] if path.suffix == ".wav" else []
            return found

        assert walk(root).files == sorted(expected(root, []))


def test_what_cannot_be_read_is_named(tmp_path, write_wav, monkeypatch):
    write_wav(tmp_path / "a.wav")
    (tmp_path / "locked").mkdir()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "self.wav").symlink_to(tmp_path / "self.wav")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("/locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(module.os, "scandir", refuse)
    source = FolderSource(str(tmp_path))
    assert [source.name(i) for i in range(len(source))] == ["a.wav"]
    assert dict(source.bad)["locked"] == "Permission denied"
    assert {name for name, _ in source.bad} == {"locked", "gone.wav", "self.wav"}
    assert {path for path, _ in source.bad_paths} == {
        str(tmp_path / name) for name in ("locked", "gone.wav", "self.wav")
    }
    packed = {Path(clip.path).name for clip in list_clips([str(tmp_path)])}
    assert packed == {"a.wav", "locked", "gone.wav", "self.wav"}  # the last three are listed as skipped


def test_other_kinds_of_sound_are_counted_in_every_door(tmp_path, write_wav):
    soundfile.write(tmp_path / "real.wave", [0.1] * 1600, 16000, format="WAV")
    make(tmp_path, "a.amr", "b.AMR", "sub/c.wv", "notes.txt", "labels.json", ".d.amr")
    for open_door in (
        lambda: len(FolderSource(str(tmp_path))),
        lambda: sum(map(len, open_inputs([str(tmp_path)]))),
        lambda: len(list_clips([str(tmp_path)])),
    ):
        with pytest.warns(UserWarning, match=r"2 \.amr, 1 \.wv.*ffmpeg -i IN\.amr OUT\.flac"):
            assert open_door() == 1
    with pytest.raises(UserError, match=r"no audio files .*1 \.wv.*convert"):
        find_audio(tmp_path / "sub")


def test_what_pyav_would_read_is_counted_with_the_extra_that_reads_it(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "real.wav", [0.1] * 1600, 16000)
    make(tmp_path, "a.m4a", "b.M4A", "c.webm", "d.amr")
    monkeypatch.setattr(module, "HAS_AV", False)
    monkeypatch.setattr(module, "SUFFIXES", (".wav",))
    with pytest.warns(UserWarning, match=r"2 \.m4a, 1 \.webm.*these 3: pip install .audio-encoder\[av\].; .*1 \.amr"):
        assert len(find_audio(tmp_path).files) == 1


def test_a_folder_without_sound_says_what_it_has(tmp_path):
    make(tmp_path, "a.txt", "b.txt", "c")
    with pytest.raises(UserError, match=r"no audio files .*2 \.txt, 1 without a suffix"):
        find_audio(tmp_path)


def test_what_a_mac_adds_is_no_clip_in_a_folder_or_a_tar(tmp_path, write_wav, recwarn):
    write_wav(tmp_path / "set/cat/0.wav")
    write_wav(tmp_path / "set/dog/0.wav")
    make(tmp_path, "set/cat/._0.wav", "set/.DS_Store", "set/__MACOSX/cat/._0.wav", "set/__MACOSX/1.wav")
    source = FolderSource(str(tmp_path / "set"))
    assert [source.name(i) for i in range(len(source))] == ["cat/0.wav", "dog/0.wav"] and not source.bad
    with tarfile.open(tmp_path / "mac.tar", "w") as tar:
        for file in sorted((tmp_path / "set").rglob("*")):
            tar.add(file, "./" + str(file.relative_to(tmp_path / "set")), recursive=False)
    shards = ShardSource(str(tmp_path / "mac.tar"))
    assert len(shards) == 2 and not shards.bad
    assert not recwarn.list


@pytest.mark.parametrize(
    "name, hidden",
    [("./a/b.wav", False), ("a/../b.wav", False), ("a/._b.wav", True), ("__MACOSX/a.wav", True), (".x/a.wav", True)],
)
def test_hidden_members(name, hidden):
    assert is_hidden_member(name) == hidden
