"""Imports run one way: read from the source, so that a late import inside a function counts too."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
# A room imports from rooms of the levels below its own; inside a level rooms don't know of each other.
LEVELS = [
    {"commands"},
    {"pretraining", "classification", "adapters"},
    {"training", "evaluation"},
    {"encoders", "data", "pages"},
    {"audio", "models"},
]
EVERYWHERE = {
    "config", "errors", "atomic", "skipped", "progress", "hub_names", "share", "verbosity", "command_line", "memory"
}  # fmt: skip
SIBLINGS = {"data": {"packing", "pretraining", "labelled"}}  # of the rooms in a room: these stand on the others


def level_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def room_of(name: str) -> str:
    """The room of `src.x.y`; a module beside the rooms is a command."""
    first = name.split(".")[1]
    return first if first in EVERYWHERE or (SOURCE / first).is_dir() else "commands"


def imported(file: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def ours(file: Path) -> list[str]:
    names = [name for name in imported(file) if name.startswith("src.")]
    return [name for name in names if room_of(name) not in EVERYWHERE]


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_run_downwards(file):
    parts = file.relative_to(SOURCE).parts
    here = parts[0] if len(parts) > 1 or file.stem in EVERYWHERE else "commands"
    for name in ours(file):
        there = room_of(name)
        assert here.removesuffix(".py") not in EVERYWHERE, f"{file} imports {name}"
        assert here == there or level_of(there) > level_of(here), f"{file} imports {name}"
        if here == there and here in SIBLINGS:
            inner = name.split(".")[2]
            mine = parts[1] if len(parts) > 2 else ""
            assert inner not in SIBLINGS[here] or inner == mine, f"{file} imports its sibling {name}"


@pytest.mark.parametrize("package", ["lightning", "datasets", "wandb"])
def test_models_are_plain_pytorch(package):
    for file in (SOURCE / "models").glob("*.py"):
        assert not [name for name in imported(file) if name.split(".")[0] == package], file


@pytest.mark.parametrize("file", ["config/settings.py", "config/files.py", "config/checks.py", "train.py", "embed.py"])
def test_commands_import_nothing_heavy_before_they_must(file):
    top = ast.parse((SOURCE / file).read_text(encoding="utf-8")).body
    names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
    assert not names & {"torch", "lightning", "timm", "datasets", "numpy", "wandb", "sklearn"}
