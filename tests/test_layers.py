"""Imports run one way (CONTRIBUTING.md): read from the source, so that a late import inside a function counts too."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
ALLOWED = {  # folder of src: folders it may import from
    "models": {"models"},
    "data": {"data"},
    "formats": {"formats", "models"},
    "evaluation": {"evaluation", "data", "models"},
    "training": {"training", "evaluation", "data", "formats", "models", "checkpoint"},
    "adapters": {"models", "checkpoint"},
    "": {"training", "evaluation", "formats", "data", "models", "checkpoint", ""},
}
EVERYWHERE = {"config", "config_files", "config_values", "errors"}


def folder_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def imported(file: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_run_downwards(file):
    here = folder_of(file)
    for name in imported(file):
        if name.startswith("src.") and (target := name.split(".")[1]) not in EVERYWHERE:
            if not (SOURCE / target).is_dir() and target != "checkpoint":
                target = ""
            assert target in ALLOWED[here], f"{file} imports {name}"


@pytest.mark.parametrize("package", ["lightning", "datasets", "wandb"])
def test_models_are_plain_pytorch(package):
    for file in (SOURCE / "models").glob("*.py"):
        assert not [name for name in imported(file) if name.split(".")[0] == package], file


@pytest.mark.parametrize("file", ["config.py", "train.py"])
def test_doors_import_nothing_heavy_before_they_must(file):
    top = ast.parse((SOURCE / file).read_text(encoding="utf-8")).body
    names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
    assert not names & {"torch", "lightning", "timm", "datasets", "numpy", "wandb", "sklearn"}
