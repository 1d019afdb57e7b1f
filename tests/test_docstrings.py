"""Public names say what they are for, and the examples in the docstrings of the commands are right."""

import ast
import importlib
import shlex
import textwrap
from pathlib import Path

import pytest
import soundfile

from src import embed
from src.config.files import load_config
from src.encoders.save import save_encoder
from src.models import create_encoder
from src.train import parse

SOURCE = Path("src")
COMMANDS = [
    path.stem
    for path in sorted(SOURCE.glob("*.py"))
    if path.stem != "__main__" and "def main(" in path.read_text(encoding="utf-8")  # that one starts the others
]
EXAMPLES = [
    line.strip()
    for command in COMMANDS
    for line in (importlib.import_module(f"src.{command}").__doc__ or "").splitlines()
    if line.strip().startswith("python -m src.")
]
OBVIOUS_LINES = 10  # up to these, the name and the code say it
ENTRIES = {"main", "run", "parse"}  # of a command, whose module has the docstring
FIELDS = SOURCE / "config" / "settings.py"  # each of its fields has a sentence instead


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=str)
def test_public_names_are_documented(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{file} does not say what is in it"
    lacking = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and node.name not in ENTRIES
        and (node.end_lineno or 0) - node.lineno >= OBVIOUS_LINES
        and not ast.get_docstring(node)
    ]
    assert file == FIELDS or not lacking, f"{file}: {lacking}"


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_command_in_a_docstring_is_understood(example):
    module, words = example.split()[2], shlex.split(example)[3:]
    if module != "src.train":
        importlib.import_module(module).parse(words)
        return
    options, overrides = parse(words)
    if any(file.startswith("runs/") for file in options.config):  # what a run writes
        options.config = ["configs/classify/linear.yaml", "configs/data/demo.yaml"]
    assert load_config(options.config, overrides).data.sources


def test_each_command_has_examples():
    assert {example.split()[2].removeprefix("src.") for example in EXAMPLES} == set(COMMANDS)


def test_the_python_in_the_docstring_of_embed_runs(tmp_path, clips):
    save_encoder(create_encoder("tiny"), tmp_path / "encoder")
    soundfile.write(tmp_path / "dog.wav", clips[0].numpy(), 16000)
    code = textwrap.dedent((embed.__doc__ or "").partition("or an array:\n\n")[2].partition("\n\n")[0])
    names: dict = {}
    exec(code.replace("runs/quickstart", str(tmp_path / "encoder")).replace("dog.wav", f"{tmp_path}/dog.wav"), names)
    assert names["vector"].shape == (192,)
