"""Encoder output, loss and front end compared with the official code (`dasheng` 0.0.9) and torchaudio.

    python -m benchmarks.parity

Both use the same random weights, masks and real audio. Numbers are maximum absolute differences in fp32, for batches of
one clip (the official dB floor is relative to the batch's maximum).
"""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
import torchaudio.transforms as AT
from dasheng.pretrained.pretrained import Dasheng
from dasheng.train import models as official
from torch import Tensor, nn

from benchmarks.report import machine_and_date, table
from src.models import SIZES, create_mae
from src.models.log_mel import LogMel
from src.models.mae import MaskedAutoencoder
from src.models.masking import Mask, group_mask

DEMO = Path(__file__).parent.parent / "data" / "demo" / "data"


def demo_waveform(seconds: float, start_seconds: float = 0.0) -> Tensor:
    """(T,) from the concatenated test clips of the demo, 16 kHz."""
    first, last = round(start_seconds * 16000), round((start_seconds + seconds) * 16000)
    clips, num_samples = [], 0
    for encoded in pq.read_table(next(DEMO.glob("test-*.parquet")), columns=["audio"])["audio"].to_pylist():
        samples, sample_rate = soundfile.read(io.BytesIO(encoded["bytes"]), dtype="float32")
        assert sample_rate == 16000 and samples.ndim == 1
        clips.append(samples)
        num_samples += len(samples)
        if num_samples >= last:
            return torch.from_numpy(np.concatenate(clips)[first:last])
    raise ValueError(f"the demo's test split has {num_samples / 16000:.0f} s, less than {last / 16000:.0f} s")


def official_mae(size: str) -> official.AudioTransformerMAE:
    """The official masked autoencoder in one of our sizes, with its own initial weights."""
    shape, decoder_shape = SIZES[size]
    encoder = official.AudioTransformerMAE_Encoder(
        embed_dim=shape.width, depth=shape.depth, num_heads=shape.num_heads, group_masking=True
    )
    decoder = official.AudioTransformerMAE_Decoder(
        input_dim=shape.width,
        outputdim=256,
        embed_dim=decoder_shape.width,
        depth=decoder_shape.depth,
        num_heads=decoder_shape.num_heads,
        num_patches=252,
    )
    return official.AudioTransformerMAE(encoder, decoder)


def official_encoder(size: str) -> Dasheng:
    """The official encoder without masking, for clips of any length."""
    shape = SIZES[size].encoder
    return Dasheng(embed_dim=shape.width, depth=shape.depth, num_heads=shape.num_heads)


def randomize(mae: MaskedAutoencoder, seed: int) -> MaskedAutoencoder:
    """Perturb all weights and statistics, so that leaving out one initialized to 0 or 1 changes the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        statistics = mae.encoder.init_bn
        statistics.running_mean.copy_(-30 + 5 * torch.randn(64, generator=generator))
        statistics.running_var.copy_(200 + 50 * torch.rand(64, generator=generator))
    return mae


def copy_to_official(mae: MaskedAutoencoder, theirs: nn.Module) -> None:
    """Copy our weights into the official network, a `Dasheng` encoder or an `AudioTransformerMAE`.

    Only the batch norm has another name, and the official decoder's position table has one more entry, never used.
    """
    encoder = {name.replace("init_bn.", "init_bn.1."): value for name, value in mae.encoder.state_dict().items()}
    if isinstance(theirs, Dasheng):
        missing, unexpected = nn.Module.load_state_dict(theirs, encoder, strict=False)
    else:
        decoder = dict(mae.decoder.state_dict())
        decoder["pos_embed"] = nn.functional.pad(decoder["pos_embed"], (0, 0, 0, 1))
        weights = {f"encoder.{name}": value for name, value in encoder.items()}
        weights |= {f"decoder.{name}": value for name, value in decoder.items()}
        missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(".front_end." in f".{name}" for name in missing), missing


def use_mask(theirs: official.AudioTransformerMAE, mask: Mask) -> None:
    """Make the official network mask exactly the tokens of `mask` (all tokens real)."""
    shuffled = torch.cat([mask.visible, mask.mask.nonzero()[:, 1].reshape(len(mask.mask), -1)], dim=1)

    def masking(tokens: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        visible = tokens.gather(1, mask.visible[..., None].expand(-1, -1, tokens.shape[-1]))
        return visible, mask.mask.float(), shuffled.argsort(dim=1)

    theirs.encoder.masking_func = masking


def torchaudio_front_end() -> nn.Module:
    """The transforms of the official front end."""
    mel = AT.MelSpectrogram(
        sample_rate=16000, n_fft=512, win_length=512, hop_length=160, f_min=0, f_max=8000, n_mels=64
    )
    return nn.Sequential(mel, AT.AmplitudeToDB(top_db=120))


@torch.no_grad()
def encoder_difference(ours: MaskedAutoencoder, waveform: Tensor, theirs: Dasheng) -> float:
    return _largest(ours.encoder(waveform) - theirs(waveform))


@torch.no_grad()
def loss_difference(ours: MaskedAutoencoder, waveform: Tensor, theirs: official.AudioTransformerMAE) -> float:
    seeds = torch.arange(len(waveform))
    num_tokens = ours.encoder.num_tokens(waveform.shape[1])
    use_mask(theirs, group_mask(seeds, num_tokens, None, ours.mask_ratio, ours.mask_group))
    return _largest(ours(waveform, seeds=seeds).loss - theirs(waveform, return_loss=True))


@torch.no_grad()
def front_end_difference(waveform: Tensor) -> float:
    return _largest(LogMel()(waveform[None])[0] - torchaudio_front_end()(waveform[None]))


def network_rows(size: str) -> list[list[str]]:
    """Encoder and loss of one size; the loss with running statistics (eval) and batch statistics (train)."""
    ours = randomize(create_mae(size), seed=0).eval()
    encoder, mae = official_encoder(size).eval(), official_mae(size).eval()
    copy_to_official(ours, encoder)
    copy_to_official(ours, mae)
    clips = {seconds: demo_waveform(seconds)[None] for seconds in (1.0, 2.5, 10.0, 31.0)}
    encoders = [f"{encoder_difference(ours, clip, encoder):.1e}" for clip in clips.values()]
    losses = {"eval": [], "train": []}
    for mode, cells in losses.items():
        ours.train(mode == "train"), mae.train(mode == "train")
        for seconds, clip in clips.items():
            cells.append(f"{loss_difference(ours, clip, mae):.1e}" if seconds <= 10.0 else "-")
    columns = zip(clips, encoders, losses["eval"], losses["train"], strict=True)
    return [[size, f"{seconds:g} s", *cells] for seconds, *cells in columns]


def front_end_rows() -> list[list[str]]:
    """Single clips, from silence to far above full scale."""
    clip = demo_waveform(10.0)
    second = torch.arange(16000) / 16000
    signals = {
        "demo, 10 s": clip,
        "silence": torch.zeros(16000),
        "constant 0.5": torch.full((16000,), 0.5),
        "sine 440 Hz": torch.sin(440 * 2 * torch.pi * second),
        "clipped": (clip * 1000).clamp(-1, 1),
        "1000 times full scale": clip * 1000,
    }
    return [[name, f"{front_end_difference(signal):.1e} dB"] for name, signal in signals.items()]


def main() -> None:
    torch.set_num_threads(2)
    print(machine_and_date(), "\n")
    rows = [row for size in ("tiny", "base") for row in network_rows(size)]
    print(table(["size", "audio", "encoder", "loss (eval)", "loss (train)"], rows), "\n")
    print(table(["signal", "log-mel - torchaudio"], front_end_rows()))


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


if __name__ == "__main__":
    main()
