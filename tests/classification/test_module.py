"""What the module measures: losses of frames weigh frames; and which groups a report's intervals draw."""

import json

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.functional import cross_entropy

from src import train
from src.classification.module import AudioClassification
from src.config.settings import ClassifyConfig
from src.encoders.save import save_encoder
from src.evaluation.report import intervals
from src.models.classifier import AudioClassifier
from src.models.initialize import initialize
from src.models.vit import AudioViT


def small_encoder() -> AudioViT:
    encoder = AudioViT(48, 2, 3)
    initialize(encoder, 0, "encoder")
    return encoder


def test_the_validation_loss_of_frames_is_the_mean_over_all_frames():
    """A short clip in a batch of its own must not count as much as a batch of long ones."""
    model = AudioClassifier(small_encoder(), ["a", "b"], pooling=None)
    module = AudioClassification(model, ClassifyConfig(method="linear", level="frame")).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head[1].weight)
    logits, targets = [], []
    for lengths in ((50, 30), (3,)):
        embedding = torch.randn(len(lengths), max(lengths), 48)
        events = torch.tensor([[[0.0, 0.5, 0.0], [0.5, 9.0, 1.0]]] * len(lengths))
        batch = {
            "embedding": embedding, "num_tokens": torch.tensor(lengths), "events": events,
            "target": torch.ones(len(lengths), 2), "index": torch.arange(len(lengths)),
        }  # fmt: skip
        module.validation_step(batch, 0)
        target, valid = module._targets(batch)
        logits.append(model.head(embedding)[valid])
        targets.append(target[valid])
    expected = cross_entropy(torch.cat(logits), torch.cat(targets))
    assert float(module.losses["val"].compute()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.slow
def test_intervals_of_a_report_draw_groups_where_there_are_groups(tmp_path):
    lines = ["filename,label,split,group"]
    for number in range(48):
        hertz = (300, 2500)[number % 2]
        time = np.arange(4800) / 16000
        noise = np.random.default_rng(number).normal(size=len(time))
        soundfile.write(tmp_path / f"{number:02}.wav", 0.1 * np.sin(2 * np.pi * hertz * time) + 0.2 * noise, 16000)
        split = ("train", "valid", "test", "test")[number % 8 // 2]
        lines.append(f"{number:02}.wav,{'low' if hertz == 300 else 'high'},{split},{split}{number // 16}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    save_encoder(small_encoder(), tmp_path / "encoder")
    words = ["fit", "--config", "configs/classify/linear.yaml", f"data.path={tmp_path}", "trainer.max_epochs=2",
             f"model.init_from={tmp_path / 'encoder'}", f"runs_folder={tmp_path / 'runs'}", "name=a",
             "trainer.threads=1", "data.batch_size=8"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        seen = {}

        def remember(targets, probabilities, multi, groups=None, seed=0):
            seen["groups"] = groups
            return intervals(targets, probabilities, multi, groups, seed)

        patch.setattr("src.evaluation.report.intervals", remember)
        assert train.main(words) == 0
    assert set(seen["groups"]) == {"test0", "test1", "test2"} and len(seen["groups"]) == 24
    assert json.loads((tmp_path / "runs/a/report.json").read_text())["intervals"]["accuracy"]
