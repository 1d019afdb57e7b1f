"""Every YAML in configs/ builds, with the exact number of parameters."""

from pathlib import Path

import pytest

from src.config.files import load_config, to_yaml
from src.config.settings import Config
from src.data.pretraining.datamodule import PretrainDataModule
from src.data.sources.storage import expand_ranges
from src.errors import UserError
from src.pretraining.run import build_model

FRAGMENTS = sorted(Path("configs/data").glob("*.yaml"))
CLASSIFIERS = [Path("configs/classify", f"{name}.yaml") for name in ("linear", "finetune", "kfold")]  # tests/training
EXPERIMENTS = {  # file: parameters of encoder and decoder
    "configs/quickstart.yaml": (5_441_408, 1_914_880),  # 4,608 of them LayerScale
    "configs/pretrain/tiny.yaml": (5_441_408, 1_914_880),
    "configs/pretrain/base.yaml": (85_447_808, 25_874_688),
    "configs/pretrain/0.6b.yaml": (630_333_568, 26_136_832),
    "configs/pretrain/1.2b.yaml": (1_134_047_360, 58_276_096),
}
RECIPE = "configs/pretrain/paper.yaml"  # goes with one of the experiments
PAPER = {"optimizer.lr": 3e-4, "optimizer.weight_decay": 0.01, "optimizer.warmup_steps": 45_000,
         "optimizer.final_share": 0.1, "data.batch_size": 256, "data.crop_seconds": 10.0, "data.pad_to_crop": True,
         "trainer.max_steps": 1_500_000, "objective.mask_ratio": 0.75, "objective.mask_group": 2}  # fmt: skip


def test_all_experiments_are_listed_here():
    found = [Path("configs/quickstart.yaml"), *Path("configs/pretrain").glob("*.yaml")]
    assert {str(path) for path in found} == set(EXPERIMENTS) | {RECIPE}
    everything = set(Path("configs").rglob("*.yaml")) - set(Path("configs/sweep").iterdir())  # those are for W&B
    assert {str(path) for path in everything} == set(EXPERIMENTS) | {str(f) for f in [*FRAGMENTS, *CLASSIFIERS, RECIPE]}


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_an_experiment_builds_with_its_exact_size(file):
    model = build_model(load_config([file, "configs/data/demo.yaml"], []), device="meta")
    counts = tuple(sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder))
    assert counts == EXPERIMENTS[file]


@pytest.mark.parametrize("file", ["configs/quickstart.yaml", "configs/pretrain/tiny.yaml"])
def test_the_papers_recipe_is_a_fragment_away(file):
    ours, theirs = (load_config([file, "configs/data/demo.yaml", *more], []) for more in ([], [RECIPE]))
    assert ours.optimizer.name == "muon" and ours.model.dct_patches and ours.model.layer_scale == 0.1
    base = load_config(["configs/pretrain/base.yaml", "configs/data/demo.yaml"], [])
    for name in ("name", "lr", "weight_decay", "betas", "final_share"):
        assert getattr(theirs.optimizer, name) == getattr(base.optimizer, name)
    assert theirs.objective == base.objective
    assert (theirs.model.layer_scale, theirs.model.dct_patches) == (None, False)


@pytest.mark.parametrize("size", ["base", "0.6b", "1.2b"])
def test_the_papers_presets_keep_its_values(size):
    config = load_config([f"configs/pretrain/{size}.yaml", "configs/data/demo.yaml"], ["data.crop_seconds=10"])
    for key, value in PAPER.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == value, key


@pytest.mark.parametrize("file", FRAGMENTS, ids=str)
def test_a_fragment_goes_on_top_of_an_experiment(file):
    """Its audio lies where data.path says; only the fragments of known sets have one."""
    config = load_config(["configs/pretrain/tiny.yaml", str(file)], ["data.path=/my/audio"])
    assert all(source.path.startswith("/my/audio") for source in config.data.sources)
    if file.stem == "dasheng_mix":  # shards of the public code's configuration
        counts = [len(expand_ranges(source.path)) for source in config.data.sources]
        assert counts == [source.weight for source in config.data.sources] == [1824, 191, 18, 56]
        PretrainDataModule(config.data)  # weights are possible
    if "path: ???" in file.read_text(encoding="utf-8"):
        with pytest.raises(UserError, match=r"data.*path is not set"):
            load_config(["configs/pretrain/tiny.yaml", str(file)], [])
    else:
        load_config(["configs/pretrain/tiny.yaml", str(file)], [])


def test_every_file_begins_with_its_command():
    for file in [*EXPERIMENTS, *FRAGMENTS, *CLASSIFIERS]:
        head = Path(file).read_text(encoding="utf-8").split("\n\n")[0]
        assert head.startswith("# ") and "python -m src.train fit --config" in head, file
        assert str(file) in head


def test_the_settings_of_a_run_rebuild_it(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(load_config(["configs/pretrain/base.yaml", "configs/data/demo.yaml"], [])))
    assert isinstance(load_config([str(file)], []), Config)
