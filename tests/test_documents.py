"""README, pages and configs say what is so: commands parse, named files exist."""

import csv
import importlib
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from src import evaluate
from src.config.files import describe_keys, load_config
from src.data.sources.folder import FolderSource
from src.encoders.save import save_encoder
from src.models import SIZES, create_encoder, create_mae
from src.models.cost import forward_flops, memory_bytes
from src.train import main, parse
from tests.training.two_blocks import TWO_BLOCKS

PAGES = {path.name: path.read_text(encoding="utf-8")
         for path in (Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").glob("*.md")))}  # fmt: skip
README, SCALE = PAGES["README.md"], PAGES["scale.md"]
COMMANDS = sorted({line.strip() for page in PAGES.values() for line in page.splitlines()
                   if re.match(r" {4}(python -m src|make )", line)})  # fmt: skip


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m src.train")])
def test_a_command_of_the_documentation_is_understood(command):
    options, overrides = parse(shlex.split(command, comments=True)[3:])
    files = [f for f in options.config if not f.startswith("runs/")]  # what the quickstart writes is tested elsewhere
    classifier = "runs/linear/config.yaml" in options.config
    default = ["configs/classify/linear.yaml", "configs/data/demo.yaml"] if classifier else ["configs/quickstart.yaml"]
    config = load_config(files or default, overrides)
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
def test_another_command_of_the_documentation_is_understood(command):
    _, _, module, *arguments = shlex.split(command, comments=True)
    importlib.import_module(module).parse(arguments)


def test_make_knows_the_commands_of_the_readme():
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", README)) | {
        w for c in COMMANDS if c.startswith("make") for w in c.split()[1:2]
    }
    assert named and named <= targets
    assert {"quickstart", "test", "test-slow", "lint", "format", "bench", "help"} <= targets


def test_the_python_of_the_documentation_runs(tmp_path, clips):
    save_encoder(create_encoder("tiny"), tmp_path / "encoder")
    soundfile.write(tmp_path / "dog.wav", clips[0].numpy(), 16000)
    names: dict = {}
    code = code_of("    import torch\n")
    exec(code.replace("runs/quickstart", str(tmp_path / "encoder")).replace("dog.wav", f"{tmp_path}/dog.wav"), names)
    assert names["tokens"].shape == (2, 50, 192) and names["vector"].shape == (192,)


def test_the_trainer_of_the_documentation_trains(tmp_path, clips):
    for number, clip in enumerate(clips[:32]):
        soundfile.write(tmp_path / f"{number}.wav", clip.numpy(), 16000)
    code = code_of("    import lightning as L\n").replace("/my/audio", str(tmp_path))
    code = code.replace("max_steps=1000", f"max_steps=1, logger=False, default_root_dir={str(tmp_path)!r}")
    names: dict = {}
    exec(code, names)
    assert names["module"].trainer.global_step == 1 and len(code.splitlines()) <= 10


def code_of(first: str, page: str = "encoders.md") -> str:
    """The block of a page that begins so."""
    lines = PAGES[page][PAGES[page].index(first) :].splitlines()
    block = list(itertools.takewhile(lambda line: line.startswith("    ") or not line, lines))
    return "\n".join(line.removeprefix("    ") for line in block)


def test_files_and_folders_of_the_layout_exist():
    tree = PAGES["CONTRIBUTING.md"].partition("    src/\n")[2].partition("\n\nImports run")[0]
    names = re.findall(r"[a-z_]+\.py", tree)
    for name in names:
        assert list(Path("src").rglob(name)), name
    listed = {p.name for p in Path("src").rglob("*.py") if p.name != "__init__.py" and "evaluation" not in p.parts}
    assert listed <= set(names), listed - set(names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = Path() if Path(page).exists() else Path("docs")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page]):
        assert (folder / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_a_page_names_exist(page):
    sections = {key.split(".")[0] for key in describe_keys() if "." in key} - {"callbacks"}
    named = re.findall(rf"`((?:{'|'.join(sections)})(?:\.\w+)+)(?<!\.py)(?<!\.safetensors)(?==|`)", PAGES[page])
    keys = {each for key in describe_keys() for each in (key, key.replace(".N.", ".0."))}
    own = {"data.path", "data.test.path"}  # of a fragment; of a source
    assert set(named) <= keys | own | {key.rpartition(".")[0] for key in keys}, set(named) - keys - own


def test_the_page_of_settings_is_current():
    done = subprocess.run([sys.executable, "docs/settings.py"], capture_output=True, text=True, check=True)
    assert done.stdout == PAGES["settings.md"], "python docs/settings.py > docs/settings.md"


def test_the_site_builds_without_a_dead_link(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs-material is in the extra dev")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {page.stem for page in Path("docs").glob("*.md")} - {"index"} <= {
        p.name for p in (tmp_path / "site").iterdir()
    }


def test_the_examples_of_extending_run(tmp_path, monkeypatch, encoded):
    (tmp_path / "my_callbacks.py").write_text(code_of("    # my_callbacks.py", "extending.md").rpartition("\n\n")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(SIZES, "tiny", TWO_BLOCKS)
    setting = code_of("    callbacks=[{class_path: my_callbacks", "extending.md").strip()
    words = ["fit", "--config", "configs/quickstart.yaml", f"runs_folder={tmp_path}", "name=a", "trainer.max_steps=2",
             "optimizer.warmup_steps=1", "trainer.threads=1", "tracking.wandb=null", "check.train=null",
             "check.test=null", "data.validation=null", "data.batch_size=4",
             "trainer.val_check_interval=null"]  # fmt: skip
    assert main([*words, setting.replace("every: 5", "every: 2")]) == 0
    names: dict = {}
    monkeypatch.setitem(SIZES, "large", TWO_BLOCKS)  # removed again at the end
    exec(code_of("    from src.models import SIZES", "extending.md"), names)
    assert names["model"].encoder.embed_dim == 1024
    exec(code_of("    from src.data.sources.source", "extending.md"), names)
    exec(code_of("    from src.models import create_mae\n    from src.models.mae", "extending.md"), names)
    output = names["module"].model(torch.cat([torch.zeros(1, 16000), torch.randn(1, 16000)]))
    assert output.loss == (output.prediction - output.target).abs().mean() and output.mask.sum() == 2 * (25 - 10)
    source = names["Memory"]({f"{number}.opus": clip for number, clip in enumerate(encoded[:3])})
    assert len(source) == 3 and len(source.waveform(1)) == round(16000 * source.seconds[1])


@pytest.mark.slow
def test_the_task_of_extending_is_scored(tmp_path, monkeypatch):
    task, out = tmp_path / "my_tasks", tmp_path / "out"
    exec(code_of("    import csv\n", "extending.md").replace("my_tasks", str(task)), {})
    shown = [c for c in COMMANDS if "my_tasks/drums" in c]
    words = shlex.split(shown[0].replace("my_tasks", str(task)).replace("--out drums", f"--out {out}"))[3:]
    at = words.index("--encoder")
    monkeypatch.setitem(SIZES, "tiny", TWO_BLOCKS)
    assert len(shown) == 1 and evaluate.main([*words[:at], *words[at + 2 :]]) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    scores = {row["encoder"]: row["score"] for row in rows}
    assert rows[0]["classes"] == 3 and scores["mel"] > scores["majority"] + 0.2


def test_the_folders_of_own_labels_have_labels(tmp_path):
    code = code_of("    from pathlib import Path\n", "own_labels.md").replace(
        '"sounds"', repr(str(tmp_path / "sounds"))
    )
    exec(code, {})
    source = FolderSource(str(tmp_path / "sounds"))
    assert source.class_names == ["animal", "footsteps", "strings"] and len(source) == 187


def test_embed_and_search_as_the_readme_shows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "tiny", TWO_BLOCKS)
    save_encoder(create_encoder("tiny"), tmp_path / "encoder")
    places = {"runs/quickstart": tmp_path / "encoder", "demo.parquet": tmp_path / "demo.parquet",
              "neighbors.html": tmp_path / "neighbors.html"}  # fmt: skip
    for start in ("python -m src.embed data/demo", "python -m src.search docs/footsteps.opus"):
        line = next(line.strip() for line in README.splitlines() if line.strip().startswith(start))
        _, _, module, *words = shlex.split(line)
        for name, place in places.items():
            words = [word.replace(name, str(place)) for word in words]
        assert importlib.import_module(module).main(words) == 0
    printed = capsys.readouterr().out
    assert "212 clips in" in printed
    assert re.search(r" 1 +1\.000 +data/demo:test#40:test_0040\.opus +footsteps", printed)
    assert places["neighbors.html"].stat().st_size > 1000


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if "--plan" in c and "configs/data/demo.yaml" in c}))
def test_a_plan_that_a_page_asks_for_is_printed(command, capsys):
    assert main(shlex.split(command)[3:]) == 0
    printed = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    if command in README:
        block = README[README.index(command) :].split("\n\n")[1]
        shown = [re.sub(" +", " ", line.strip()) for line in block.splitlines()]
        shown = [line for line in shown if not line.startswith("memory")]  # as much as the machine allows
        assert len(shown) > 1 and set(shown) <= set(printed)


@pytest.mark.parametrize("size", ["base", "0.6b", "1.2b"])
def test_the_costs_of_a_size_are_those_of_the_plan(size):
    model = create_mae(size, device="meta")
    lines = [
        line.strip("| ").split(" | ") for line in PAGES["recipes.md"].splitlines() if line.startswith(f"| {size} ")
    ]
    memory = [[cell.replace(",", "") for cell in line] for line in lines if len(line) == 7]
    assert memory
    for _, clips, *gigabytes, gflop in memory:
        needed = [memory_bytes(model, 250, 62, int(clips), True, recompute, num_shards=shards) / 2**30
                  for shards in (1, 8) for recompute in (False, True)]  # fmt: skip
        assert gigabytes == [f"{each:.1f}" for each in needed]
        assert int(gflop) == round(3e-9 * forward_flops(model, 250, 62) * int(clips))
    ((_, gflop, mfu, hours),) = [line for line in lines if len(line) == 4]
    gflop = int(gflop.replace(",", ""))
    assert gflop == round(3e-9 * forward_flops(model, 250, 62) * 256)
    assert int(hours) == round(1_500_000 * gflop / (989_000 * float(mfu.split(",")[0])) / 3600)


def test_the_readmes_quickstart_is_one_of_the_expected_ones():
    rows = csv.DictReader(Path("docs/expected/quickstart.csv").read_text(encoding="utf-8").splitlines())
    last = {row["figure"]: (float(row["lowest"]), float(row["highest"])) for row in rows}
    for line, name in (("this encoder", "check"), ("untrained encoder", "floor/untrained")):
        for value, probe in zip(
            re.search(rf"    {line} +(\S+) +(\S+)", README).groups(), ("knn", "linear"), strict=True
        ):
            low, high = last[f"{name}_{probe}" if name.startswith("floor") else f"{name}/{probe}"]
            assert low - 5e-4 <= float(value) <= high + 5e-4


def test_the_readme_is_short_and_finished():
    assert len(README.splitlines()) < 200
    assert not re.findall(r"[A-Z]+_(?:ROW|ROWS|TABLE|MINUTES)|TODO", README)
