"""Half-precision weights: the blocks compute in them, the front end stays in fp32, bit for bit."""

import pytest
import torch

from src.embed import embed
from src.models.classifier import AudioClassifier
from src.models.initialize import initialize
from src.models.vit import AudioViT, pool

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-5}  # relative, of the norm


def make_encoder() -> AudioViT:
    encoder = AudioViT(48, 2, 3)
    initialize(encoder, 0, "encoder")
    encoder.init_bn.running_mean.fill_(-30.3)
    encoder.init_bn.running_var.fill_(207.7)
    return encoder.eval()


@torch.no_grad()
def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_encoder_classifier_and_embed(dtype, long_audio):
    waveform = long_audio[None, : 12 * 16000]
    full, half = make_encoder(), make_encoder().to(dtype)
    front_end = [*half.log_mel.buffers(), half.init_bn.weight, half.init_bn.bias, half.init_bn.running_mean]
    expected = [*full.log_mel.buffers(), full.init_bn.weight, full.init_bn.bias, full.init_bn.running_mean]
    assert all(torch.equal(one, other) for one, other in zip(front_end, expected, strict=True))
    assert half.patch_embed.proj.weight.dtype == half.time_pos_embed.dtype == dtype
    with torch.no_grad():
        for layer in (None, 1):
            for pooling in ("mean", "mean_std"):
                tokens = half.embed(waveform, torch.tensor([150_000]), layer, pooling)
                wanted = full.embed(waveform, torch.tensor([150_000]), layer, pooling)
                assert tokens.dtype == dtype and error(tokens, wanted) < TOLERANCE[dtype]
        classifier = AudioClassifier(full, ["a", "b"], pooling="mean_std")
        torch.nn.init.normal_(classifier.head[1].weight, generator=torch.Generator().manual_seed(0))
        logits = classifier(waveform)
        assert error(classifier.to(dtype)(waveform), logits) < TOLERANCE[dtype]
    found = embed(long_audio[:16000].numpy(), half, 16000)
    assert (
        found.dtype == "float32"
        and error(torch.from_numpy(found), make_encoder().embed(long_audio[None, :16000])[0]) < TOLERANCE[dtype]
    )


def test_the_mean_of_a_long_clip_has_no_rounded_count():
    tokens = torch.ones(1, 257, 4, dtype=torch.bfloat16)
    assert torch.equal(pool(tokens, torch.tensor([257])), torch.ones(1, 4, dtype=torch.bfloat16))
