"""What all commands have in common: names, help, --quiet and --verbose, progress, plain text when piped."""

import importlib
import logging
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from src import embed, export, progress, search, train, verbosity
from src.__main__ import COMMANDS, completion, main, overview, summary
from src.encoders.save import save_encoder
from src.errors import UserError, exit_status
from src.models import create_encoder
from src.progress import progress_bar

PLAIN = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, clips, two_blocks):
    folder = tmp_path_factory.mktemp("commands")
    (folder / "sounds").mkdir()
    for number, clip in enumerate(clips[:3]):
        soundfile.write(folder / "sounds" / f"{number}.wav", clip.numpy(), 16000)
    save_encoder(create_encoder("tiny"), folder / "encoder")
    words = [str(folder / "sounds"), "--encoder", str(folder / "encoder"), "--out", str(folder / "a.parquet")]
    assert embed.main(words) == 0
    return folder


@pytest.fixture(autouse=True)
def own_logger(monkeypatch):
    """src.train sets the handlers of the logger; they are put back."""
    logger = logging.getLogger("src")
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    monkeypatch.setattr(logger, "propagate", logger.propagate)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_three_examples_that_parse(name, capsys):
    module = importlib.import_module(f"src.{name}")
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    text = capsys.readouterr().out
    examples = re.findall(rf"^    python -m src\.{name} (.*)$", text, re.M)
    assert stop.value.code == 0 and len(examples) >= 3
    assert "--quiet" in text and "--verbose" in text
    for example in examples:
        module.parse(shlex.split(example))


def test_the_package_lists_its_commands_without_anything_heavy():
    code = (
        "import sys; from src.__main__ import main; main([]); print({'torch', 'numpy', 'lightning'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=PLAIN).stdout
    assert said.splitlines()[-1] == "set()"
    for name in COMMANDS:
        assert f"  {name} " in said and summary(name) in said and summary(name)
    done = subprocess.run([sys.executable, "-m", "src"], capture_output=True, text=True, check=True, env=PLAIN)
    assert done.stdout.strip() == overview()


def test_a_command_by_its_name_is_the_module(capsys):
    assert main(["train", "fit", "--config", "configs/quickstart.yaml", "--print-config"]) == 0
    by_name = capsys.readouterr().out
    assert train.main(["fit", "--config", "configs/quickstart.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == by_name
    assert main(["emebd"]) == 2
    assert "there is no command emebd; did you mean embed?" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell):
    script = completion(shell)
    for word in (*COMMANDS, "--encoder", "--print-config", "--quiet"):
        assert word in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        code = f"{script}\nCOMP_WORDS=(audio-encoder sea); COMP_CWORD=1; _shtab_audio_encoder; echo ${{COMPREPLY[@]}}"
        said = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False).stdout
        assert said.split() == ["search"]
    with pytest.raises(UserError, match="bash, zsh, tcsh"):
        completion("fish")


def test_quiet_leaves_results_and_errors(place, capsys, tmp_path):
    query = [str(place / "sounds/0.wav"), "--index", str(place / "a.parquet")]
    assert search.main(query) == 0
    normal = capsys.readouterr()
    assert search.main([*query, "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert quiet.out == normal.out and not quiet.err
    assert normal.err.startswith("next: python -m src.search ") and "--html" in normal.err
    assert export.main([str(place / "encoder"), "--out", str(tmp_path / "e"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert export.main([str(place / "encoder"), "--out", str(tmp_path / "e"), "-q"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert verbosity.level() == verbosity.NORMAL


def test_the_next_command_is_one_that_runs(place, capsys, tmp_path):
    out = tmp_path / "a folder" / "b.parquet"
    assert export.main([str(place / "encoder"), "--out", str(tmp_path / "e 1")]) == 0
    (following,) = re.findall(r"^next: python -m src\.embed (.*)$", capsys.readouterr().err, re.M)
    words = [str(place / "sounds") if word == "INPUT" else word for word in shlex.split(following)]
    assert embed.main([str(out) if word == "embeddings.parquet" else word for word in words]) == 0
    (following,) = re.findall(r"^next: python -m src\.search (.*)$", capsys.readouterr().err, re.M)
    words = [str(place / "sounds/1.wav") if word == "QUERY.wav" else word for word in shlex.split(following)]
    assert search.main([str(tmp_path / "n.html") if word == "neighbors.html" else word for word in words]) == 0
    assert (tmp_path / "n.html").exists()


def test_verbose_tells_where_an_error_comes_from(capsys):
    arguments = ["no.wav", "--index", "no.parquet"]
    assert search.main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert search.main([*arguments, "--verbose"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("error: there is no index")
    with pytest.raises(SystemExit):
        search.main([*arguments, "--verbose", "--quiet"])


def test_a_quiet_run_prints_its_result_and_logs_everything(place, capsys, tmp_path):
    words = ["fit", "--quiet", "--config", "configs/pretrain/tiny.yaml", "trainer.max_steps=2", "data.batch_size=2",
             f"data.sources=[{{kind: folder, path: {place / 'sounds'}}}]", "tracking.wandb=null", "name=r",
             "data.crop_seconds=0.5", "trainer.val_check_interval=null", f"runs_folder={tmp_path}"]  # fmt: skip
    assert train.main(words) == 0
    said, log = capsys.readouterr().out, (tmp_path / "r" / "log.txt").read_text(encoding="utf-8")
    assert said.strip().startswith("steps") and "parameters" not in said and "next:" not in said
    assert "parameters" in log and f"next: python -m src.embed INPUT --encoder {tmp_path}/r --out" in log


def test_progress_in_a_log_file_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(np.arange(0, 1000, 10.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_bar("embedding", 12) as advance:
        for _ in range(12):
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{n} of 12  embedding  0:0{(12 - n) // 6}:{(12 - n) * 10 % 60:02} to go" for n in (3, 6, 9, 12)]
    with progress_bar("embedding", 12, shown=False) as advance:
        advance()

    def quiet() -> int:
        with progress_bar("embedding", 100) as advance:
            for _ in range(60):
                advance()
        return 0

    assert exit_status(quiet, verbosity=verbosity.QUIET) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_no_colors_outside_of_a_terminal_or_with_no_color(place, capsys, monkeypatch):
    import pty

    query = [str(place / "sounds/0.wav"), "--index", str(place / "a.parquet")]
    assert search.main(query) == 0
    assert "similarity" in (said := capsys.readouterr().out) and "\x1b" not in said
    main_end, terminal = pty.openpty()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(terminal, "w") as opened, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", opened)
        assert search.main(query) == 0
        opened.flush()
        shown = os.read(main_end, 65536)
    assert b"similarity" in shown and not re.search(rb"\x1b\[(3|4|9)\d", shown)  # bold may stay


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_every_file_has_the_users_permissions(place, tmp_path):
    sounds, encoder = str(place / "sounds"), str(place / "encoder")
    before = os.umask(0o022)
    try:
        for form in export.FORMATS:
            out = str(tmp_path / f"e-{form}{ {'onnx': '.onnx', 'dasheng': '.pt'}.get(form, '') }")
            assert export.main([encoder, "--format", form, "--out", out]) == 0
        for name in ("a.parquet", "a.npz"):
            assert embed.main([sounds, "--encoder", encoder, "--out", str(tmp_path / "out" / name)]) == 0
        pages = ["--html", str(tmp_path / "p" / "a.html"), "--map", str(tmp_path / "m.html")]
        assert search.main([f"{sounds}/0.wav", "--index", str(tmp_path / "out" / "a.parquet"), *pages]) == 0
        assert main(["pack", sounds, "--out", str(tmp_path / "shards"), "--workers", "1"]) == 0
        words = [f"data.sources=[{{kind: folder, path: '{sounds}'}}]", "data.crop_seconds=0.5", "data.batch_size=2",
                 "trainer.max_steps=1", "trainer.val_check_interval=null", f"runs_folder={tmp_path}"]  # fmt: skip
        assert train.main(["fit", "--config", "configs/pretrain/tiny.yaml", *words]) == 0
    finally:
        os.umask(before)
    paths = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    wrong = [(str(p), oct(mode)) for p in paths
             if (mode := stat.S_IMODE(p.stat().st_mode)) != (0o755 if p.is_dir() else 0o644)]  # fmt: skip
    assert len(paths) > 20 and not wrong
