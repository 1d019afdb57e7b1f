"""The same weights and the same mask give the same tokens and the same loss as the official code (`dasheng` 0.0.9)."""

import pytest
import torch

pytest.importorskip("dasheng", reason="the official package is a development dependency")

from benchmarks import parity
from src.models import create_mae
from src.models.masking import group_mask
from tests.models.batches import pad_batch

TOLERANCE = 1e-5
SECONDS = [1.0, 2.5, 10.0]


@pytest.fixture(scope="module", params=["tiny", "base"])
def networks(request):
    """Ours, the official encoder and the official masked autoencoder, with equal weights."""
    ours = parity.randomize(create_mae(request.param), seed=0).eval()
    encoder, mae = parity.official_encoder(request.param).eval(), parity.official_mae(request.param).eval()
    parity.copy_to_official(ours, encoder)
    parity.copy_to_official(ours, mae)
    return ours, encoder, mae


@pytest.fixture
def tiny():
    ours = parity.randomize(create_mae("tiny"), seed=0).eval()
    encoder = parity.official_encoder("tiny").eval()
    parity.copy_to_official(ours, encoder)
    return ours, encoder


@pytest.mark.parametrize("seconds", [*SECONDS, 20.0])
def test_encoder(networks, seconds, long_audio):
    """Over 10.08 s in chunks."""
    ours, encoder, _ = networks
    assert parity.encoder_difference(ours, long_audio[None, : round(seconds * 16000)], encoder) <= TOLERANCE


@pytest.mark.parametrize("seconds", [10.08, 10.12, 30.24, 31.0])
def test_chunks(tiny, seconds, long_audio):
    ours, encoder = tiny
    assert parity.encoder_difference(ours, long_audio[None, : round(seconds * 16000)], encoder) <= TOLERANCE


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_loss(networks, seconds, training, long_audio):
    """In training mode with batch statistics; the running ones are restored afterwards."""
    ours, _, mae = networks
    states = [{name: value.clone() for name, value in network.state_dict().items()} for network in (ours, mae)]
    ours.train(training), mae.train(training)
    difference = parity.loss_difference(ours, long_audio[None, : round(seconds * 16000)], mae)
    for network, state in zip((ours, mae), states, strict=True):
        network.eval().load_state_dict(state)
    assert difference <= TOLERANCE


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_loss_of_a_batch_of_equal_peaks(tiny, training, long_audio):
    """With no value above 20 dB both floors lie below `amin`, -100 dB, and the batch does not matter."""
    ours, _ = tiny
    mae = parity.official_mae("tiny").train(training)
    parity.copy_to_official(ours.train(training), mae)
    clips = long_audio[: 5 * 40000].reshape(5, 40000)
    peaks_db = ours.encoder.log_mel(clips)[0].amax((1, 2))
    clips = clips * 10 ** ((10 - peaks_db) / 20)[:, None]
    assert parity.loss_difference(ours, clips, mae) <= TOLERANCE


class ContiguousBatchNorm(torch.nn.BatchNorm2d):
    """With contiguous input and gradient.

    Otherwise torch 2.14 computes wrong gradients of weight and bias on the CPU, since the official front end and patch
    embedding have different strides here. Finite differences agree with our gradients.
    """

    def forward(self, values):
        output = super().forward(values.contiguous())
        output.register_hook(lambda gradient: gradient.contiguous())
        return output


def test_gradients(tiny, long_audio):
    ours, _ = tiny
    mae = parity.official_mae("tiny").train()
    mae.encoder.init_bn[1] = ContiguousBatchNorm(64, momentum=0.01)
    parity.copy_to_official(ours.train(), mae)
    waveform, seeds = long_audio[None, :40000], torch.tensor([5])
    parity.use_mask(mae, group_mask(seeds, ours.encoder.num_tokens(40000), None))
    ours(waveform, seeds=seeds).loss.backward()
    mae(waveform, return_loss=True).backward()
    theirs = {name.replace("init_bn.1.", "init_bn."): parameter.grad for name, parameter in mae.named_parameters()}
    theirs["decoder.pos_embed"] = theirs["decoder.pos_embed"][:, :252]
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - theirs.pop(name)).abs().max() <= TOLERANCE, name
    assert not theirs


@torch.no_grad()
def test_rows_of_a_padded_batch_equal_the_official_clip_alone(tiny, clips):
    ours, encoder = tiny
    waveform, length = pad_batch(clips[:8])
    results = ours.encoder(waveform, length)
    for clip, row in zip(clips, results, strict=False):
        alone = encoder(clip[None])[0]
        assert (row[: len(alone)] - alone).abs().max() <= TOLERANCE
        assert not row[len(alone) :].any()


@torch.no_grad()
def test_the_batch_changes_their_embedding_but_not_ours(tiny, long_audio):
    """The one deliberate difference: their dB floor is relative to the loudest clip of the batch."""
    ours, encoder = tiny
    clips = torch.stack([1e-4 * long_audio[:32000], long_audio[32000:64000] / long_audio[32000:64000].abs().max()])
    their_change = (encoder(clips)[0] - encoder(clips[:1])[0]).abs().max()
    our_change = (ours.encoder(clips)[0] - ours.encoder(clips[:1])[0]).abs().max()
    assert their_change > 0.01
    assert our_change <= TOLERANCE
    assert (ours.encoder(clips[:1]) - encoder(clips[:1])).abs().max() <= TOLERANCE
