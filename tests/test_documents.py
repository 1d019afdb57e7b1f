"""README, notebooks and configs say what is so: commands parse, cells run, named files exist."""

import importlib
import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import soundfile

from src.config.files import load_config
from src.encoders.save import save_encoder
from src.models import create_encoder
from src.train import parse

README = Path("README.md").read_text(encoding="utf-8")
SCALE = Path("docs/scale.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for line in [*README.splitlines(), *Path("CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()]
    if re.match(r" {4}(python -m src|make )", line)
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m src.train")])
def test_a_command_of_the_readme_is_understood(command):
    options, overrides = parse(shlex.split(command, comments=True)[3:])
    files = [f for f in options.config if not f.startswith("runs/")]  # what the quickstart writes is tested elsewhere
    config = load_config(files or ["configs/quickstart.yaml"], overrides)
    assert config.data.sources


@pytest.mark.parametrize("command", re.findall(r"^ {4}(?:\w+=\S+ )*((?:python|torchrun) .*src\.train.*)", SCALE, re.M))
def test_a_command_of_the_guide_to_many_processes_is_understood(command):
    options, overrides = parse(shlex.split(command.partition("-m src.train ")[2]))
    assert load_config(options.config, overrides).data.sources


def test_the_slurm_file_is_a_script_with_a_command_that_is_understood():
    file = Path("configs/slurm/pretrain.sbatch")
    subprocess.run(["bash", "-n", str(file)], check=True)
    command = re.search(r"\nsrun .*?-m src\.train (.*?)\"\$@\"", file.read_text(encoding="utf-8"), re.S)
    assert command is not None
    options, overrides = parse(shlex.split(command.group(1).replace("\\\n", "")))
    assert options.resume == "auto"
    assert load_config(options.config, [*overrides, "data.path=/audio/0.tar"]).trainer.strategy == "fsdp"


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if re.match(r"python -m src\.(embed|evaluate|export|pack|search)", c)]
)
def test_another_command_of_the_readme_is_understood(command):
    _, _, module, *arguments = shlex.split(command, comments=True)
    importlib.import_module(module).parse(arguments)


def test_make_knows_the_commands_of_the_readme():
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", README)) | {
        w for c in COMMANDS if c.startswith("make") for w in c.split()[1:2]
    }
    assert named and named <= targets
    assert {"quickstart", "test", "test-slow", "lint", "format", "bench", "help"} <= targets


def test_the_python_of_the_readme_runs(tmp_path, clips):
    save_encoder(create_encoder("tiny"), tmp_path / "encoder")
    soundfile.write(tmp_path / "dog.wav", clips[0].numpy(), 16000)
    names: dict = {}
    code = code_of("    import torch\n")
    exec(code.replace("runs/quickstart", str(tmp_path / "encoder")).replace("dog.wav", f"{tmp_path}/dog.wav"), names)
    assert names["tokens"].shape == (2, 50, 192) and names["vector"].shape == (192,)


def test_the_trainer_of_the_readme_trains(tmp_path, clips):
    for number, clip in enumerate(clips[:32]):
        soundfile.write(tmp_path / f"{number}.wav", clip.numpy(), 16000)
    code = code_of("    import lightning as L\n").replace("/my/audio", str(tmp_path))
    code = code.replace("max_steps=1000", f"max_steps=1, logger=False, default_root_dir={str(tmp_path)!r}")
    names: dict = {}
    exec(code, names)
    assert names["module"].trainer.global_step == 1 and len(code.splitlines()) <= 10


def code_of(first: str) -> str:
    """The block of the README that begins so."""
    lines = README[README.index(first) :].splitlines()
    block = list(itertools.takewhile(lambda line: line.startswith("    ") or not line, lines))
    return "\n".join(line.removeprefix("    ") for line in block)


def test_files_and_folders_of_the_layout_exist():
    tree = README[README.index("    src/\n") :].split("\n\nImports run")[0]
    names = re.findall(r"[a-z_]+\.py", tree)
    for name in names:
        assert list(Path("src").rglob(name)), name
    listed = {p.name for p in Path("src").rglob("*.py") if p.name != "__init__.py" and "evaluation" not in p.parts}
    assert listed <= set(names), listed - set(names)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert Path(link).exists(), link


@pytest.mark.parametrize("notebook", sorted(Path("notebooks").glob("*.ipynb")), ids=str)
def test_a_notebook_runs_from_top_to_bottom(notebook, tmp_path):
    names: dict = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert len(cell["source"]) <= 12
            exec("".join(cell["source"]).replace("runs/", f"{tmp_path}/"), names)
    assert (tmp_path / "look.png").stat().st_size > 10_000


def test_the_readme_is_short_and_finished():
    assert len(README.splitlines()) < 250
    assert not re.findall(r"[A-Z]+_(?:ROW|ROWS|TABLE|MINUTES)|TODO", README)
