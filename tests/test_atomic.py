"""What is written is there whole or not at all, whoever else writes beside it."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from src.atomic import FolderLock, writing, writing_folder, writing_new


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "file"
    with writing(target) as partial:
        partial.write_text("half")
        assert not target.exists()
        partial.write_text("whole")
    assert target.read_text() == "whole" and names(target.parent) == ["file"]


def test_a_failure_leaves_what_was_there_before(tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "file") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), writing_folder(tmp_path / "folder") as partial:
        (partial / "half").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "before"


def test_two_writers_and_a_users_own_partial_never_meet(tmp_path):
    mine = tmp_path / "out.partial"
    mine.mkdir()
    (mine / "precious").write_text("mine")
    with (
        writing_folder(tmp_path / "out") as one,
        writing(tmp_path / "file") as two,
        writing(tmp_path / "file") as three,
    ):
        assert len({one, two, three, mine}) == 4
        (one / "a").write_text("a")
        two.write_text("two")
        three.write_text("three")
    assert (mine / "precious").read_text() == "mine" and (tmp_path / "out/a").read_text() == "a"
    assert (tmp_path / "file").read_text() in ("two", "three")


def test_a_new_file_replaces_nothing(tmp_path):
    (tmp_path / "a.csv").write_text("before")
    for expected in ("a-2.csv", "a-3.csv"):
        with writing_new(tmp_path / "a.csv") as (partial, final):
            partial.write_text("new")
        assert final == tmp_path / expected
    with pytest.raises(ZeroDivisionError), writing_new(tmp_path / "a.csv") as (partial, final):
        raise ZeroDivisionError
    assert names(tmp_path) == ["a-2.csv", "a-3.csv", "a.csv"] and (tmp_path / "a.csv").read_text() == "before"


def test_a_folder_is_held_by_one(tmp_path):
    with contextlib.closing(FolderLock(tmp_path / "new")):
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path / "new")
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path / "new")
    FolderLock(tmp_path / "new").close()
    assert not names(tmp_path / "new")


def test_a_killed_process_lets_go_though_its_children_live(tmp_path):
    """Data workers are forked and outlive a killed run by some seconds; they give up nothing while it lives."""
    code = (
        "import os, sys, time; from pathlib import Path; from src.atomic import FolderLock\n"
        f"lock = FolderLock(Path({str(tmp_path)!r}))\n"
        "child = os.fork()\n"
        "if not child: lock.close(); time.sleep(60)\n"
        "time.sleep(0.2); print(child, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path)
        process.kill()
        process.wait()
        os.kill(child, 0)
        FolderLock(tmp_path).close()
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with writing(tmp_path / "file") as partial:
            partial.write_text("x")
        with writing_folder(tmp_path / "folder"):
            pass
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(Path(tmp_path, name).stat().st_mode) for name in ("file", "folder")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask]
