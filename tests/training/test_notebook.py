"""The LightningModules and data modules by themselves: ten lines with a plain Trainer, and load_from_checkpoint."""

import lightning as L
import numpy as np
import pytest
import soundfile
import torch

from src.classification.module import AudioClassification
from src.config.settings import ClassifyConfig, DataConfig, OptimizerConfig, SourceConfig
from src.data.labelled.clips import read_labelled
from src.data.labelled.datamodule import LabelledDataModule
from src.data.labelled.splits import make_splits
from src.data.pretraining.datamodule import PretrainDataModule
from src.models import create_mae
from src.models.classifier import AudioClassifier
from src.models.decoder import Decoder
from src.models.initialize import initialize
from src.models.mae import MaskedAutoencoder
from src.models.vit import AudioViT
from src.pretraining.module import MAEPretraining

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(24):
        samples = 0.1 * np.random.default_rng(number).normal(size=8000 + 100 * number)
        (folder / f"class{number % 2}").mkdir(exist_ok=True)
        soundfile.write(folder / f"class{number % 2}/{number:02}.wav", samples, 16000)
    return folder


def small_mae() -> MaskedAutoencoder:
    encoder, decoder = AudioViT(48, 2, 3), Decoder(48, 32, 1, 2)
    initialize(encoder, 0, "encoder")
    initialize(decoder, 0, "decoder")
    return MaskedAutoencoder(encoder, decoder)


def test_pretraining_in_a_notebook(sounds, tmp_path):
    data = PretrainDataModule(DataConfig(sources=[SourceConfig(path=str(sounds))], batch_size=8, crop_seconds=0.5))
    module = MAEPretraining(small_mae(), OptimizerConfig(lr=1e-3, warmup_steps=2))
    trainer = L.Trainer(max_steps=4, default_root_dir=tmp_path, use_distributed_sampler=False, **QUIET)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 4 and torch.isfinite(trainer.callback_metrics["train/loss"])

    trainer.save_checkpoint(tmp_path / "mae.ckpt")
    again = MAEPretraining.load_from_checkpoint(tmp_path / "mae.ckpt", weights_only=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
    assert again.optimizer_config == module.optimizer_config and again.model.architecture == module.model.architecture


def test_the_rate_is_scaled_by_the_data_module_and_left_alone_with_another(sounds):
    data = PretrainDataModule(DataConfig(sources=[SourceConfig(path=str(sounds))], batch_size=8, crop_seconds=0.5))
    module = MAEPretraining(small_mae(), OptimizerConfig(lr=0.256))
    L.Trainer(max_steps=1, enable_checkpointing=False, **QUIET).fit(module, datamodule=data)
    assert module._groups()[0]["lr"] == pytest.approx(0.008)
    plain = torch.utils.data.DataLoader([{"waveform": torch.randn(8000)} for _ in range(4)], 2)
    other = MAEPretraining(small_mae(), OptimizerConfig(lr=0.256))
    L.Trainer(max_steps=2, enable_checkpointing=False, **QUIET).fit(other, plain)
    assert other._groups()[0]["lr"] == 0.256


def test_classification_in_a_notebook(sounds, tmp_path):
    labelled = make_splits(read_labelled([SourceConfig(path=str(sounds))], None, None), seed=0)
    data = LabelledDataModule(labelled, DataConfig(batch_size=4, crop_seconds=0.5))
    model = AudioClassifier(small_mae().encoder, labelled.class_names)
    module = AudioClassification(model, ClassifyConfig(method="finetune"), OptimizerConfig(lr=0.01))
    trainer = L.Trainer(max_epochs=2, default_root_dir=tmp_path, use_distributed_sampler=False, **QUIET)
    trainer.fit(module, datamodule=data)
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    assert 0 <= scores["test/accuracy"] <= 1

    trainer.save_checkpoint(tmp_path / "classifier.ckpt")
    again = AudioClassification.load_from_checkpoint(tmp_path / "classifier.ckpt", weights_only=True)
    assert again.model.class_names == ["class0", "class1"] and again.config == module.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())


def test_a_network_is_rebuilt_from_its_architecture():
    mae = create_mae("tiny", mask_ratio=0.6, mask_group=3, seed=2)
    module = MAEPretraining(mae, seed=5)
    again = MAEPretraining(**module.hparams)
    assert again.model.architecture == mae.architecture and again.seed == 5
    again.load_state_dict(module.state_dict())
