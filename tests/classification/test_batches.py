"""Outputs in batches: equal to those of each clip alone, in bounded memory, however long a clip is."""

import numpy as np
import pytest
import soundfile
import torch

from src.classification import features
from src.classification.batches import logits_of, probabilities_of
from src.classification.module import frame_targets
from src.data.labelled.clips import Clip
from src.data.labelled.datamodule import EmbeddedClips, bounded_batches
from src.data.sources.annotations import Annotation, Event
from src.data.sources.folder import FolderSource
from src.evaluation import collection
from src.evaluation.embeddings import embed_clips, mel_statistics
from src.models import long_clips
from src.models.classifier import AudioClassifier
from src.models.initialize import initialize
from src.models.log_mel import LogMel
from src.models.vit import AudioViT

TOLERANCE = 1e-5


def classifier(pooling, multi=False, seed=0) -> AudioClassifier:
    encoder = AudioViT(48, 2, 3, max_tokens=25)
    initialize(encoder, seed, "encoder")
    encoder.init_bn.running_mean.fill_(-30)
    encoder.init_bn.running_var.fill_(200)
    model = AudioClassifier(encoder, ["a", "b", "c"], pooling=pooling, multi=multi)
    torch.nn.init.normal_(model.head[1].weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("pooling", ["mean", "mean_std", None])
def test_predictions_in_batches_are_those_of_each_clip(pooling, monkeypatch):
    monkeypatch.setattr("src.classification.batches._WINDOW_SECONDS", 6.0)  # several windows
    models = [classifier(pooling, multi=pooling is None, seed=seed) for seed in (0, 1)]
    lengths = (16000, 500, 40000, 3000, 16000, 90000, 800, 20000)
    segments = [(i, 2.0 * i, noise(n, i)[None]) for i, n in enumerate(lengths)]
    found = list(probabilities_of(models, iter(segments)))
    assert [(clip, start) for clip, start, _ in found] == [(clip, start) for clip, start, _ in segments]
    for (_, _, waveform), (_, _, row) in zip(segments, found, strict=True):
        with torch.no_grad():
            alone = torch.stack([model.probabilities(model(waveform)) for model in models]).mean(0)[0]
        np.testing.assert_allclose(row, alone.numpy(), atol=TOLERANCE)


def test_only_a_window_of_audio_is_read_ahead():
    read = []

    def segments():
        for i in range(200):
            read.append(i)
            yield i, 0.0, torch.zeros(1, 10 * 16000)

    next(probabilities_of([classifier("mean")], segments()))
    assert len(read) == 60  # ten minutes


@pytest.mark.parametrize("pooling", ["mean_std", None])
def test_long_clips_are_encoded_in_chunks_and_equal_the_whole(pooling, monkeypatch):
    model = classifier(pooling)
    length = torch.tensor([70000, 300, 40000])
    waveform = torch.nn.utils.rnn.pad_sequence([noise(n, i) for i, n in enumerate(length.tolist())], batch_first=True)
    with torch.no_grad():
        whole = model(waveform, length)
    monkeypatch.setattr(long_clips, "LONG_SECONDS", 2.0)
    seen = []
    model.encoder.log_mel.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    chunked = logits_of(model, waveform, length)
    assert max(seen) < 25000  # a chunk of 25 tokens (one second) and its margins
    tokens = torch.arange(whole.shape[1]) < model.encoder.num_tokens(length)[:, None]
    real = tokens if pooling is None else torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(chunked[real], whole[real], atol=TOLERANCE, rtol=0)


def test_embeddings_and_mel_statistics_of_a_long_clip_are_those_of_the_whole(monkeypatch):
    waveforms = [noise(n, i).numpy() for i, n in enumerate((70000, 9000))]
    encoder = classifier("mean").encoder
    embeddings, statistics = embed_clips(encoder, waveforms, pooling="mean_std"), mel_statistics(waveforms)
    monkeypatch.setattr("src.models.long_clips.LONG_SECONDS", 2.0)
    monkeypatch.setattr("src.evaluation.embeddings._FRAMES", 100)
    seen, forward = [], LogMel.forward

    def remember(self, waveform, *arguments, **named):
        seen.append(waveform.shape[1])
        return forward(self, waveform, *arguments, **named)

    monkeypatch.setattr(LogMel, "forward", remember)
    np.testing.assert_allclose(embed_clips(encoder, waveforms, pooling="mean_std"), embeddings, atol=TOLERANCE)
    assert max(seen) < 35000
    np.testing.assert_allclose(mel_statistics(waveforms), statistics, atol=1e-5)  # in dB


@pytest.mark.parametrize("pooling", ["mean", None])
def test_features_of_a_set_hold_bounded_audio(pooling, tmp_path, monkeypatch):
    """Four windows: two clips, two clips, a long clip, a clip."""
    monkeypatch.setattr(collection, "_WINDOW_SECONDS", 1.1)
    monkeypatch.setattr(collection, "LONG_SECONDS", 2.0)
    for i, seconds in enumerate((0.5, 0.6, 0.3, 0.7, 2.5, 0.5)):
        soundfile.write(tmp_path / f"{i}.wav", noise(int(seconds * 16000), i).numpy(), 16000)
    source, model, events = FolderSource(str(tmp_path)), classifier(pooling), []
    clips = [Clip(source, i, Annotation(("a",)), None, str(i)) for i in range(6)]
    inner = features.embed_clips if pooling else features.embed_frames

    def counted(encoder, waveforms, *rest):
        events.append(len(waveforms))
        return inner(encoder, waveforms, *rest)

    monkeypatch.setattr(features, inner.__name__, counted)
    rows = features.embed(model, clips)
    assert events == [2, 2, 1, 1]
    for clip, row in zip(clips, rows, strict=True):
        alone = features.embed(model, [clip])[0]
        torch.testing.assert_close(row, alone, atol=TOLERANCE, rtol=0)


def test_batches_of_whole_clips_hold_bounded_audio():
    random = np.random.default_rng(0)
    for _ in range(50):
        seconds = random.choice([0.5, 1.0, 7.0, 30.0, 3600.0], size=40).tolist()
        most_clips, most_seconds = int(random.integers(1, 9)), float(random.integers(1, 60))
        batches = bounded_batches(range(40), seconds.__getitem__, most_clips, most_seconds)
        assert [clip for batch in batches for clip in batch] == list(range(40))
        for batch in batches:
            padded = len(batch) * max(seconds[clip] for clip in batch)
            assert len(batch) == 1 or (len(batch) <= most_clips and padded <= most_seconds)
    equal = bounded_batches(range(10), lambda clip: 2.0, 4, 40.0)
    assert [len(batch) for batch in equal] == [4, 4, 2]


class Part:
    """One clip of 4 s with an event from 2 to 3 s."""

    targets = np.ones((1, 1), np.float32)

    def events(self, i):
        return [Event(2.0, 3.0, "a")]


def test_tokens_of_a_long_clip_are_cropped_with_their_events():
    """Each token tells its own time, so the event must cover the tokens from 2 to 3 s in any crop."""
    hop = 0.04
    tokens = torch.arange(100.0)[:, None]
    clips = EmbeddedClips(Part(), [tokens], {"a": 0}, crop_seconds=1.5, seed=0, hop_seconds=hop)
    starts = set()
    for epoch in range(20):
        item = clips[epoch, 0]
        crop = item["embedding"][:, 0]
        assert len(crop) == round(1.5 / hop)
        starts.add(float(crop[0]))
        found = frame_targets(item["events"][None], torch.arange(len(crop)) * hop + 0.02, 1)[0, :, 0] > 0
        middle = crop * hop + 0.02
        assert torch.equal(found, (middle > 2.0) & (middle < 3.0))
    assert len(starts) > 5
    whole = EmbeddedClips(Part(), [tokens], {"a": 0}, crop_seconds=None, seed=0, hop_seconds=hop)
    assert torch.equal(whole[0, 0]["embedding"], tokens)
