"""Every setting changes something in a run of its kind, or is refused there.

A run is built by the real code up to the point where Lightning would start to train; what it would be is put into words
and compared.
"""

import itertools
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger

from src.classification import run as classification
from src.config.files import describe_keys, load_config
from src.encoders.save import save_encoder
from src.errors import UserError
from src.models.initialize import initialize
from src.models.vit import AudioViT
from src.pretraining import run as pretraining
from src.training.callbacks.checkpoints import Checkpoints
from src.training.optimizer import make_optimizer, make_schedule

pytestmark = pytest.mark.slow  # hundreds of runs are built; tests/config/test_reads.py looks faster, but less closely
DEMO = "kind: huggingface, path: data/demo"
PRETRAIN = ["model.drop_path=0.0", "trainer.max_steps=40", "optimizer.warmup_steps=10", "check.max_clips=40",
            "trainer.val_check_interval=20", "data.batch_size=4", "trainer.threads=1", "tracking.wandb=offline",
            f"data.sources=[{{{DEMO}, split: validation}}, {{{DEMO}, split: train}}]"]  # fmt: skip
CLASSIFY = ["data.batch_size=16", "trainer.threads=1", "trainer.max_epochs=2", "tracking.wandb=offline",
            "classify.augment.noise_db=20", "classify.augment.mixup=0.2", "model.drop_path=0.1",
            f"data.sources=[{{{DEMO}, split: validation, label_column: label}}]", "data.validation=null",
            "data.test=null"]  # fmt: skip
CHANGES = {
    "name": "other", "runs_folder": "{tmp}/elsewhere", "seed": "1", "model.size": "base", "model.drop_path": "0.2",
    "model.init_from": "no-such-encoder.pt", "model.layer_scale": "0.3", "model.gradient_checkpointing": "true",
    "model.dct_patches": "true",
    "objective.mask_ratio": "0.5", "objective.mask_group": "3", "data.validation": "null", "data.test": "null",
    "data.crop_seconds": "0.7", "data.pad_to_crop": "true", "data.batch_size": "8", "data.window_clips": "32",
    "data.resample": "true", "data.gain_db": "6", "data.num_workers": "1", "data.pin_memory": "true",
    "data.cache_gigabytes": "0", "data.max_bad_share": "0.3",
    "optimizer.name": "muon", "optimizer.lr": "1e-3", "optimizer.weight_decay": "0.2", "optimizer.betas": "[0.8, 0.99]",
    "optimizer.warmup_steps": "5", "optimizer.final_share": "0.5",
    "trainer.max_steps": "5", "trainer.max_epochs": "1", "trainer.max_time": "00:01:00:00",
    "trainer.accumulate_grad_batches": "2", "trainer.gradient_clip_val": "0.5", "trainer.log_every_n_steps": "7",
    "trainer.val_check_interval": "3", "trainer.check_val_every_n_epoch": "2", "trainer.limit_train_batches": "3",
    "trainer.limit_val_batches": "1", "trainer.fast_dev_run": "true", "trainer.overfit_batches": "2",
    "trainer.profiler": "simple", "trainer.detect_anomaly": "true", "trainer.deterministic": "true",
    "trainer.benchmark": "true", "trainer.devices": "2", "trainer.num_nodes": "2", "trainer.strategy": "fsdp",
    "trainer.accelerator": "gpu", "trainer.precision": "bf16-mixed", "trainer.compile": "true",
    "trainer.threads": "2", "trainer.skip_bad_steps": "3",
    "checkpoint.every_n_train_steps": "9", "checkpoint.train_time_interval": "00:00:10:00",
    "checkpoint.save_last": "false", "checkpoint.save_top_k": "5", "checkpoint.monitor": "val/accuracy",
    "checkpoint.mode": "max", "check.train": "null", "check.test": "null", "check.layer": "6", "check.pooling": "mean",
    "check.max_clips": "30", "tracking.wandb": "null", "tracking.project": "other", "tracking.entity": "me",
    "tracking.group": "g", "tracking.name": "n", "tracking.tags": "[a]", "tracking.notes": "words",
    "tracking.job_type": "test", "tracking.log_model": "true", "tracking.tensorboard": "true",
    "callbacks": "[{class_path: lightning.pytorch.callbacks.LearningRateMonitor}]",
    "classify.method": "finetune", "classify.level": "frame", "classify.task": "multi", "classify.layer": "1",
    "classify.pooling": "max", "classify.layer_decay": "0.5", "classify.label_smoothing": "0.2",
    "classify.balanced": "sampling", "classify.lora_rank": "2", "classify.test_fold": "7", "classify.folds": "3",
    "classify.augment.gain_db": "0", "classify.augment.shift_seconds": "0", "classify.augment.noise_db": "10",
    "classify.augment.mixup": "0.4", "classify.augment.mask_bands": "0", "classify.augment.mask_frames": "0",
    "data.sources.N.kind": "folder", "data.sources.N.path": "tests", "data.sources.N.split": "test",
    "data.sources.N.config_name": "other", "data.sources.N.audio_column": "sound",
    "data.sources.N.label_column": "source", "data.sources.N.label_separator": "r",
    "data.sources.N.fold_column": "source", "data.sources.N.group_column": "source",
    "data.sources.N.streaming": "true", "data.sources.N.weight": "5",
}  # fmt: skip
WANDB = ("project", "name", "entity", "group", "tags", "notes", "job_type")
OF_LABELS = {f"data.sources.N.{name}" for name in ("label_separator", "fold_column", "group_column")}
# Tried below in pairs, or by their parents; data.path stands in other settings only.
ELSEWHERE = {"data.path", "data.sources", "data.batch_seconds", "data.prefetch_factor", "data.persistent_workers",
             "callbacks.N.class_path", "callbacks.N.init_args", "classify"}  # fmt: skip


class Ready(Exception):
    """What would be trained: trainer, module, data module."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    encoder = AudioViT(48, 2, 3)
    initialize(encoder, 0, "encoder")
    save_encoder(encoder, folder / "encoder")
    return folder / "encoder"


@pytest.fixture(scope="module")
def observe(encoder, tmp_path_factory):
    """What a run of a kind would be, in words; or the sentence in which it is refused."""
    tmp = tmp_path_factory.mktemp("runs")
    number = itertools.count()

    def fit(trainer, module, datamodule, **_):
        raise Ready(trainer, module, datamodule)

    def words(kind: str, *overrides: str) -> str:
        torch.set_num_threads(1)
        runs = f"runs_folder={tmp}/{next(number)}"
        preset = {"pretrain": ["configs/quickstart.yaml"], "linear": ["configs/classify/linear.yaml"]}
        files = preset.get(kind, ["configs/classify/finetune.yaml"])
        rest = PRETRAIN if kind == "pretrain" else [*CLASSIFY, f"model.init_from={encoder}"]
        if kind == "linear":
            rest = [each for each in rest if not each.startswith(("classify.augment", "model.drop_path"))]
        overrides = tuple(each.replace("{tmp}", str(tmp)) for each in overrides)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(L.Trainer, "fit", fit)
            try:
                config = load_config(files, [*rest, runs, *overrides])
                (pretraining if kind == "pretrain" else classification).fit(config)
            except UserError as error:
                return str(error).replace(str(tmp), "")
            except Ready as ready:
                return describe(*ready.args, config)
        raise AssertionError("nothing was trained")

    return words


def describe(trainer: L.Trainer, module, data, config) -> str:
    trainer.datamodule = data
    data.trainer = module.trainer = trainer
    trainer.strategy.connect(module)
    if config.trainer.max_epochs and not config.trainer.fast_dev_run:
        trainer.fit_loop.max_epochs = config.trainer.max_epochs
    small = sum(p.numel() for p in module.parameters()) < 10**7 and not next(module.parameters()).is_meta
    groups = [{k: v for k, v in group.items() if k != "params"} for group in module._groups()] if small else []
    weights = [float(p.detach().sum()) for p in module.parameters()] if small else []
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    compiled = module.model.encoder.blocks[0]._compiled_call_impl is not None
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    loss = loss_of(module, loaders[0], trainer) if small else None
    return repr([
        str(module), loss, weights, trained, groups, compiled, trainer_facts(trainer),
        schedule_of(module) if small else None,
        module.model.encoder.gradient_checkpointing, torch.get_num_threads(), list(map(loader_facts, loaders)),
        [type(source).__name__ for source in getattr(data, "sources", [])], getattr(data, "overfit", None),
        [callback_facts(callback) for callback in trainer.callbacks],
        [([each._wandb_init.get(name) for name in (*WANDB, "mode")])
         for each in trainer.loggers if isinstance(each, WandbLogger)], len(trainer.loggers),
        config.name, Path(config.runs_folder).name.isdigit(), config.tracking.log_model,
    ])  # fmt: skip


def schedule_of(module) -> list:
    """Rates of 80 steps, and the optimizer's other settings."""
    optimizer = make_optimizer(module._groups(), module.optimizer_config, fused=False)
    share = make_schedule(optimizer, module.optimizer_config, 80).lr_lambdas[0]
    return [share(step) for step in range(80)] + [group["betas"] for group in optimizer.param_groups]


def loss_of(module, loader, trainer: L.Trainer) -> float | None:
    """Of a step of training on the first batch."""
    if trainer.world_size > 1:
        return None
    module.log = lambda *_: None
    module.train()
    module.on_train_epoch_start()
    torch.manual_seed(0)
    return float(module.training_step(next(iter(loader)), 0))


def trainer_facts(trainer: L.Trainer) -> list:
    return [type(trainer.strategy).__name__, trainer.max_steps, trainer.max_epochs, trainer.accumulate_grad_batches,
            trainer.world_size, trainer.gradient_clip_val, trainer.log_every_n_steps, trainer.val_check_interval,
            trainer.check_val_every_n_epoch, trainer.limit_train_batches, trainer.limit_val_batches,
            trainer.fast_dev_run, type(trainer.profiler).__name__, trainer._detect_anomaly, trainer.precision,
            torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark]  # fmt: skip


def loader_facts(loader) -> list:
    if isinstance(loader, list):
        return []
    first = next(iter(loader), None) or {}
    values = [first.get(name) for name in ("waveform", "embedding", "seed", "target", "index")]
    return [loader.num_workers, loader.prefetch_factor, loader.pin_memory, loader.persistent_workers, first.get("key"),
            [(each.shape, float(each.double().abs().sum())) for each in values if each is not None]]  # fmt: skip


def callback_facts(callback: L.Callback) -> tuple:
    plain = {k: v for k, v in vars(callback).items()
             if isinstance(v, int | float | str | None) and k not in ("_saved_time", "_agreed_at")}  # fmt: skip
    clips = [(len(v.labels), v.class_names) for v in vars(callback).values() if hasattr(v, "class_names")]
    settings = [callback.settings, callback.mark_best] if isinstance(callback, Checkpoints) else []
    return type(callback).__name__, plain, clips, settings


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.fixture(scope="module")
def unchanged(observe):
    return {kind: observe(kind) for kind in ("pretrain", "finetune", "linear")}


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "linear"])
def test_the_same_settings_look_the_same(observe, unchanged, kind):
    assert observe(kind) == unchanged[kind] and "no effect" not in unchanged[kind]


def changes_of(kind: str) -> list[str]:
    if kind == "pretrain":
        return sorted(key for key in CHANGES if not key.startswith("classify") and key not in OF_LABELS)
    return sorted(CHANGES)


def override(key: str, kind: str) -> str:
    source = "check.train." if kind == "pretrain" and key.endswith("label_column") else "data.sources.0."
    value = CHANGES[key]
    if kind == "pretrain" and key in ("model.dct_patches", "optimizer.name"):  # the quickstart's own are the others
        value = {"model.dct_patches": "false", "optimizer.name": "adamw"}[key]
    if kind == "linear" and key.startswith(("classify.augment", "model.drop_path")):  # its defaults have no effect
        value = "3"[: key != "model.drop_path"] or "0.3"
    if kind != "pretrain" and key == "data.validation":
        value = f"{{{DEMO}, split: test, label_column: label}}"
    if kind != "pretrain" and key == "data.test":
        value = f"{{{DEMO}, split: train, label_column: label}}"
    if kind != "pretrain" and key == "check.pooling":
        value = "max"
    if kind != "pretrain" and key in ("check.train", "check.test"):
        value = f"{{{DEMO}, split: test}}"
    return f"{key.replace('data.sources.N.', source)}={value}"


# A set of readable clips with one class each, all of which fit, does not show these (tests/classification does); a
# linear probe embeds whole clips, and a data fragment may say crop_seconds whoever reads it.
UNSEEN = {"data.max_bad_share", "data.sources.N.label_separator", "data.sources.N.streaming"}
NOT_SEEN_HERE = {"pretrain": set(), "finetune": UNSEEN, "linear": UNSEEN | {"data.crop_seconds"}}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in ("pretrain", "finetune", "linear")
                                           for key in changes_of(kind)])  # fmt: skip
def test_each_setting_changes_the_run_or_is_refused(observe, unchanged, kind, key):
    if key in NOT_SEEN_HERE[kind]:
        pytest.skip("these clips do not show it")
    assert observe(kind, override(key, kind)) != unchanged[kind]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_settings_that_come_in_pairs(observe, unchanged, kind):
    assert observe(kind, "data.batch_size=null", "data.batch_seconds=9") != unchanged[kind]
    worker = observe(kind, "data.num_workers=1")
    assert observe(kind, "data.num_workers=1", "data.prefetch_factor=3") != worker
    assert observe(kind, "data.num_workers=1", "data.persistent_workers=false") != worker


def test_every_setting_was_tried():
    assert set(describe_keys()) == set(CHANGES) | ELSEWHERE


def test_every_key_of_every_file_was_tried():
    known = set(CHANGES) | ELSEWHERE
    for file in set(Path("configs").rglob("*.yaml")) - set(Path("configs/sweep").iterdir()):  # those are for W&B
        for section, values in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            keys = [section] if not isinstance(values, dict) else [f"{section}.{name}" for name in values]
            assert set(keys) <= known, file
