"""Every YAML in configs/ builds, with the exact number of parameters; every setting there is changes something."""

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger

from src.config.files import describe_keys, load_config, to_yaml
from src.config.settings import Config
from src.data.pretraining.datamodule import PretrainData
from src.data.sources.storage import expand_ranges
from src.errors import UserError
from src.pretraining.module import Pretraining
from src.pretraining.run import (
    build_model,
    make_callbacks,
    make_loggers,
    make_module,
    make_trainer,
    plan_run,
    precision,
    prepare_data,
    start_from,
)

FRAGMENTS = sorted(Path("configs/data").glob("*.yaml"))
CLASSIFIERS = [Path("configs/classify", f"{name}.yaml") for name in ("linear", "finetune", "kfold")]  # tests/training
EXPERIMENTS = {  # file: parameters of encoder and decoder
    "configs/quickstart.yaml": (5_436_800, 1_914_880),
    "configs/pretrain/tiny.yaml": (5_436_800, 1_914_880),
    "configs/pretrain/base.yaml": (85_447_808, 25_874_688),
    "configs/pretrain/0.6b.yaml": (630_333_568, 26_136_832),
    "configs/pretrain/1.2b.yaml": (1_134_047_360, 58_276_096),
}
PAPER = {"optimizer.lr": 3e-4, "optimizer.weight_decay": 0.01, "optimizer.warmup_steps": 45_000,
         "optimizer.final_share": 0.1, "data.batch_size": 256, "data.crop_seconds": 10.0, "data.pad_to_crop": True,
         "trainer.max_steps": 1_500_000, "objective.mask_ratio": 0.75, "objective.mask_group": 2}  # fmt: skip


def test_all_experiments_are_listed_here():
    found = [Path("configs/quickstart.yaml"), *Path("configs/pretrain").glob("*.yaml")]
    assert {str(path) for path in found} == set(EXPERIMENTS)
    assert {str(path) for path in Path("configs").rglob("*.yaml")} == set(EXPERIMENTS) | {
        str(f) for f in [*FRAGMENTS, *CLASSIFIERS]
    }


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_an_experiment_builds_with_its_exact_size(file):
    model = build_model(load_config([file, "configs/data/demo.yaml"], []), device="meta")
    counts = tuple(sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder))
    assert counts == EXPERIMENTS[file]


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
        PretrainData(config.data)  # weights are possible
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


BASE, FOLDER = ["configs/quickstart.yaml"], Path("nowhere")  # nothing is written there
SMALL = ["model.drop_path=0.0", "trainer.max_steps=40", "optimizer.warmup_steps=10", "check.max_clips=40",
         "trainer.val_check_interval=20", "data.batch_size=4", "trainer.threads=1",
         "data.sources=[{kind: huggingface, path: data/demo, split: validation}, "
         "{kind: huggingface, path: data/demo, split: train}]"]  # fmt: skip
SOURCE = {"kind": "folder", "path": "tests", "split": "test", "config_name": "other", "audio_column": "sound",
          "label_column": "source", "streaming": "true", "weight": "5"}  # fmt: skip
CHANGES = {
    "name": "other", "runs_folder": "elsewhere", "seed": "1", "model.size": "base", "model.drop_path": "0.2",
    "model.init_from": "no-such-encoder.pt", "model.layer_scale": "0.1",
    "model.gradient_checkpointing": "true", "objective.mask_ratio": "0.5",
    "objective.mask_group": "3", "data.path": "x", "data.validation": "null", "data.test": "null",
    "data.crop_seconds": "0.7", "data.pad_to_crop": "true", "data.batch_size": "8", "data.window_clips": "32",
    "data.resample": "true",
    "data.gain_db": "6", "data.num_workers": "1", "data.cache_gigabytes": "0", "data.max_bad_share": "0.3",
    "optimizer.lr": "1e-3", "optimizer.weight_decay": "0.2", "optimizer.betas": "[0.8, 0.99]",
    "optimizer.warmup_steps": "5", "optimizer.final_share": "0.5", "trainer.gradient_clip_val": "0.5",
    "trainer.max_steps": "50", "trainer.accumulate_grad_batches": "2", "trainer.devices": "2", "trainer.num_nodes": "2",
    "trainer.strategy": "fsdp", "trainer.compile": "true",
    "trainer.accelerator": "gpu", "trainer.precision": "bf16-mixed", "trainer.threads": "2",
    "trainer.log_every_n_steps": "7", "checkpoint.every_n_train_steps": "9", "checkpoint.save_top_k": "5",
    "trainer.skip_bad_steps": "3",
    "trainer.val_check_interval": "10", "check.train": "null", "check.test": "null", "check.layer": "6",
    "check.pooling": "mean", "check.max_clips": "30", "tracking.wandb": "online", "tracking.project": "other",
    **{f"data.sources.N.{key}": value for key, value in SOURCE.items()},
}  # fmt: skip


OF_LABELS = {f"data.sources.N.{name}" for name in ("label_separator", "fold_column", "group_column")}
KEYS = {key for key in describe_keys() if not key.startswith("classify")} - OF_LABELS  # those: tests/training


def observe(overrides: list[str]) -> str:
    """What a run would be, in words: network, first batches, optimiser, trainer, callbacks, loggers; or the refusal."""
    torch.set_num_threads(1)
    try:
        config = load_config(BASE, [*SMALL, *overrides])
        about = {"wandb_id": "x", "config": {}}
        model = build_model(config, "meta" if config.model.size != "tiny" else "cpu")
        if config.model.init_from:
            start_from(model, config.model.init_from)
        data = prepare_data(config)
        plan = plan_run(config, data)
        callbacks = make_callbacks(config, Path(config.runs_folder, config.name), data, about)
        trainer = make_trainer(config, FOLDER, callbacks, [])
        loggers = make_loggers(config, FOLDER, about)
    except UserError as error:
        return str(error)
    module = Pretraining(model, config.optimizer, plan.clips_per_step, config.trainer.steps)
    compiled = make_module(config, 1).model.encoder.blocks[0]._compiled_call_impl is not None
    optimizers = module.configure_optimizers()
    share = optimizers["lr_scheduler"]["scheduler"].lr_lambdas[0]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizers["optimizer"].param_groups]
    weights = [float(p.detach().sum()) for p in model.parameters()] if config.model.size == "tiny" else []
    seen = [str(plan), compiled,
            str(model), model.mask_ratio, model.mask_group, model.encoder.gradient_checkpointing, weights,
            batches(data, trainer), groups, [share(step) for step in range(50)], torch.get_num_threads(),
            [describe(callback) for callback in callbacks], trainer_facts(trainer), precision(config),
            [(each._wandb_init, each._offline) for each in loggers if isinstance(each, WandbLogger)]]  # fmt: skip
    return repr(seen)


def batches(data: PretrainData, trainer: L.Trainer) -> list:
    data.trainer = trainer
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    firsts = [next(iter(loader), None) for loader in loaders]
    workers = [None if isinstance(loader, list) else loader.num_workers for loader in loaders]
    cached = [type(source).__name__ for source in data.sources]
    return workers + cached + [
        first and (first["key"], first["waveform"].shape, float(first["waveform"].abs().sum()), first["seed"].tolist())
        for first in firsts
    ]  # fmt: skip


def trainer_facts(trainer: L.Trainer) -> list:
    return [type(trainer.strategy).__name__,
            trainer.max_steps, trainer.accumulate_grad_batches, trainer.world_size, trainer.gradient_clip_val,
            trainer.log_every_n_steps, trainer.val_check_interval, trainer.limit_val_batches]  # fmt: skip


def describe(callback: L.Callback) -> tuple:
    plain = {k: v for k, v in vars(callback).items() if isinstance(v, int | float | str | Path | None)}
    clips = [(len(v.labels), v.class_names) for v in vars(callback).values() if hasattr(v, "labels")]
    return type(callback).__name__, plain, clips


@pytest.fixture(scope="module")
def unchanged():
    return observe([])


def test_the_same_settings_look_the_same(unchanged):
    assert observe([]) == unchanged


@pytest.mark.parametrize("key", sorted(KEYS - {"data.batch_seconds", "data.path", "data.sources"}))
def test_every_setting_changes_something(key, unchanged):
    place = "check.train." if key.endswith("label_column") else "data.sources.0."  # labels are for the probes
    override = f"{key.replace('data.sources.N.', place)}={CHANGES[key]}"
    assert observe([override]) != unchanged


def test_batch_seconds_and_path_change_something_too(unchanged):
    assert observe(["data.batch_size=null", "data.batch_seconds=9"]) != unchanged
    config = load_config([*BASE, "configs/data/folder.yaml"], ["data.path=a"])
    assert config.data.sources[0].path == "a"


def test_every_key_of_every_file_is_a_setting_that_was_tried():
    tried = set(CHANGES) | {"data.batch_seconds", "data.sources"}
    for file in [*EXPERIMENTS, *map(str, FRAGMENTS)]:
        for section, values in yaml.safe_load(Path(file).read_text(encoding="utf-8")).items():
            keys = [section] if not isinstance(values, dict) else [f"{section}.{name}" for name in values]
            assert set(keys) <= tried, file


def test_the_settings_of_a_run_rebuild_it(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(load_config(["configs/pretrain/base.yaml", "configs/data/demo.yaml"], [])))
    assert isinstance(load_config([str(file)], []), Config)
