"""Packed linear layers compute the same, and leave the encoder as it was."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from src.evaluation.embeddings import embed_clips
from src.models import create_encoder
from src.models.packed import packed_linears
from src.models.vit import AudioViT

if not torch.backends.mkldnn.is_available():
    pytest.skip("this build of PyTorch has no oneDNN", allow_module_level=True)


@pytest.fixture
def encoder():
    encoder = create_encoder("tiny", seed=0).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return encoder


def linears(encoder):
    return [module for module in encoder.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("num_tokens", [1, 3, 37, 252])
@torch.no_grad()
def test_tokens_are_the_same(encoder, num_tokens):
    patches = torch.randn(2, num_tokens, 256, generator=torch.Generator().manual_seed(0))
    expected = encoder.encode_chunk(patches, None, [3, None])
    products = []
    watched = [module.register_forward_hook(lambda *_: products.append(1)) for module in linears(encoder)]
    with packed_linears(encoder):
        assert all("forward" in vars(module) for module in linears(encoder))
        torch.testing.assert_close(encoder.encode_chunk(patches, None, [3, None]), expected, rtol=1e-5, atol=1e-5)
    assert len(products) == len(linears(encoder))  # hooks are called as before
    for hook in watched:
        hook.remove()
    assert torch.equal(encoder.encode_chunk(patches, None, [3, None]), expected)


def test_the_encoder_is_as_before_also_after_an_error(encoder):
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(RuntimeError, match="stop"), packed_linears(encoder), packed_linears(encoder):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in encoder.modules())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    copy.deepcopy(encoder)
    encoder(torch.randn(1, 16000)).sum().backward()
    assert all(module.weight.grad is not None for module in linears(encoder))


def test_weights_that_have_changed_are_packed_anew(encoder):
    clips = [torch.randn(16000, generator=torch.Generator().manual_seed(i)).numpy() for i in range(70)]
    first = embed_clips(encoder, clips)
    with torch.no_grad():
        encoder.blocks[0].mlp.fc2.weight *= 2
    second = embed_clips(encoder, clips)
    assert abs(first - second).max() > 1e-3
    with torch.no_grad():
        expected = encoder.embed(torch.from_numpy(clips[0])[None])[0].numpy()
    assert abs(second[0] - expected).max() < 1e-5


def test_adapters_stay_in_use(encoder):
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=r".*mlp\.fc1", init_lora_weights=False), encoder)
    waveform = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder(waveform)
        with packed_linears(encoder):
            torch.testing.assert_close(encoder(waveform), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_threads_that_share_an_encoder_do_not_disturb_each_other(encoder):
    """One packs and restores, again and again, while another is in the middle of a clip."""
    waveform = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    expected, stop = encoder(waveform), threading.Event()

    def pack():
        while not stop.is_set():
            with packed_linears(encoder):
                pass

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(pack) for _ in range(2)]
        try:
            for _ in range(20):
                torch.testing.assert_close(encoder(waveform), expected, rtol=1e-5, atol=1e-5)
        finally:
            stop.set()
        for other in others:
            other.result()
    assert not any("forward" in vars(module) for module in encoder.modules())


def test_what_cannot_be_packed_is_left_alone(encoder):
    for other in (copy.deepcopy(encoder).double(), copy.deepcopy(encoder).bfloat16(), AudioViT(192, 1, 3).to("meta")):
        with packed_linears(other):
            assert not any("forward" in vars(module) for module in other.modules())
