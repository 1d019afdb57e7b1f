"""Embeddings of clips: from the encoder, and from mel statistics, the floor an encoder has to beat."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from src.errors import UserError
from src.models.log_mel import LogMel
from src.models.long_clips import encode_clips
from src.models.packed import packed_linears
from src.models.vit import AudioViT, Layer, Pooling, pool

_FRAMES = 6000  # of a clip, transformed at a time: a minute
_PACKED_SECONDS = 60  # of audio in all from which packing an encoder's weights takes less than it saves


def embed_clips(
    encoder: AudioViT,
    waveforms: list[np.ndarray],
    layer: Layer | Sequence[Layer] = None,
    pooling: Pooling = "mean",
    batch_seconds: float = 30.0,
) -> np.ndarray:
    """Embed clips as `AudioViT.embed` does; returns (n, D) fp32 in the order of `waveforms`.

    Clips of similar length are batched, with at most `batch_seconds` of padded audio per batch. The encoder's training
    mode is restored afterwards.

    Args:
        waveforms: (T,) each, at the encoder's sample rate.
    """

    def pooled(tokens: torch.Tensor, counts: torch.Tensor) -> list[np.ndarray]:
        return list(_numpy(pool(tokens, counts, pooling)))

    return np.stack(_embed(encoder, waveforms, layer, batch_seconds, pooled))


def embed_frames(
    encoder: AudioViT, waveforms: list[np.ndarray], layer: Layer | Sequence[Layer] = None, batch_seconds: float = 30.0
) -> list[np.ndarray]:
    """Real tokens of each clip, (N, D) fp32. Otherwise as `embed_clips`."""

    def real(tokens: torch.Tensor, counts: torch.Tensor) -> list[np.ndarray]:
        return [row[:count] for row, count in zip(_numpy(tokens), counts.tolist(), strict=True)]

    return _embed(encoder, waveforms, layer, batch_seconds, real)


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def parse_layer(text: str | None, depth: int, name: str) -> Layer | list[Layer]:
    """The setting `name`: "6" to 6, "0,last" to [0, None], None to None. Errors as `parse_layers`."""
    layers = parse_layers(("last" if text is None else text).split(","), depth, f"{name}=")
    return layers if len(layers) > 1 else layers[0]


def parse_layers(words: Sequence[str], depth: int, name: str = "--layers ") -> list[Layer]:
    """`["6", "last"]`, as `--layers` has them, to [6, None].

    Raises:
        UserError: no such block in this encoder.
    """
    layers: list[Layer] = []
    for word in words:
        if word != "last" and not (word.isdecimal() and int(word) <= depth):
            raise UserError(f"{name}{word} is not a block; use 0 (the patch embedding) to {depth}, or last")
        layers.append(None if word == "last" else int(word))
    return layers


def fingerprint(encoder: AudioViT) -> str:
    """Hash of the architecture, the weights and the batch-norm statistics, 16 hexadecimal digits."""
    architecture = {**encoder.architecture, **encoder.architecture["log_mel"], "log_mel": None}
    shape = sorted((name, float(value)) for name, value in architecture.items() if value is not None)
    digest = hashlib.sha256(json.dumps(shape).encode())
    for name, value in sorted(encoder.state_dict().items()):
        if value.is_floating_point():
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _embed(
    encoder: AudioViT,
    waveforms: list[np.ndarray],
    layer: Layer | Sequence[Layer],
    batch_seconds: float,
    rows_of: Callable[[torch.Tensor, torch.Tensor], list[np.ndarray]],
) -> list[np.ndarray]:
    """What `rows_of` makes of the tokens (B, N, D) of each batch and the number of real ones (B,), clip by clip.

    On a CPU, each thread has batches of its own, which is faster than to share the cores in each batch.
    """
    device = encoder.time_pos_embed.device

    @torch.no_grad()
    def embed_batch(chosen: list[int]) -> list[np.ndarray]:
        waveform = pad([waveforms[i] for i in chosen])
        length = torch.tensor([len(waveforms[i]) for i in chosen], device=device)
        return rows_of(encode_clips(encoder, waveform.to(device), length, layer), encoder.num_tokens(length))

    lengths = [len(w) for w in waveforms]
    batches = batches_by_length(lengths, round(batch_seconds * encoder.sample_rate))[::-1]
    threads, was_training = torch.get_num_threads(), encoder.training
    encoder.eval()
    # Shards are gathered in one order on all processes, and autocast holds for the thread that entered it.
    alone = not (dist.is_initialized() or torch.is_autocast_enabled("cpu"))
    packed = alone and sum(lengths) > _PACKED_SECONDS * encoder.sample_rate
    with packed_linears(encoder) if packed else contextlib.nullcontext():
        if device.type == "cpu" and alone and min(threads, len(batches)) > 1:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
                found = list(executor.map(embed_batch, batches))
            torch.set_num_threads(threads)  # the last number that was set is that of threads to come
        else:
            found = [embed_batch(chosen) for chosen in batches]
    encoder.train(was_training)
    rows = dict(zip(itertools.chain(*batches), itertools.chain(*found), strict=True))
    return [rows[i] for i in range(len(waveforms))]


class BandStatistics(NamedTuple):
    """mean, var: (n_mels,) of the log-mel bands of some clips, in dB. num_batches: of which they are the mean."""

    mean: torch.Tensor
    var: torch.Tensor
    num_batches: int


@torch.no_grad()
def band_statistics(log_mel: LogMel, waveforms: list[np.ndarray]) -> BandStatistics:
    """The mean over batches of a minute. It exchanges nothing between processes: each computes the same."""
    means, variances = [], []
    for chosen in batches_by_length([len(w) for w in waveforms], 60 * log_mel.sample_rate):
        clips = [waveforms[i] for i in chosen]
        bands, valid = log_mel(pad(clips).to(log_mel.window.device), [len(clip) for clip in clips])
        frames = bands.transpose(1, 2)
        var, mean = torch.var_mean(frames.flatten(0, 1) if valid is None else frames[valid], dim=0)
        means.append(mean)
        variances.append(var)
    return BandStatistics(torch.stack(means).mean(0), torch.stack(variances).mean(0), len(means))


@torch.no_grad()
def set_norm(encoder: AudioViT, statistics: BandStatistics) -> None:
    """Set the batch-norm statistics of an untrained encoder."""
    norm = encoder.init_bn
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.running_mean.copy_(statistics.mean)
    norm.running_var.copy_(statistics.var)
    norm.num_batches_tracked.fill_(statistics.num_batches)


def calibrate_norm(encoder: AudioViT, waveforms: list[np.ndarray]) -> None:
    """Set the batch-norm statistics of an untrained encoder to those of `waveforms`."""
    set_norm(encoder, band_statistics(encoder.log_mel, waveforms))


@torch.no_grad()
def mel_statistics(waveforms: list[np.ndarray]) -> np.ndarray:
    """(n, 128): mean and standard deviation over time of each of the 64 log-mel bands, the `mel` floor.

    Frames lie within the clip and there is no dB floor under its maximum, unlike in the encoder's front end.
    """
    log_mel = LogMel()
    rows = []
    for waveform in waveforms:
        samples = torch.from_numpy(np.pad(waveform, (0, max(0, log_mel.n_fft - len(waveform)))))
        frames = samples.unfold(0, log_mel.n_fft, log_mel.hop_length)  # (F, n_fft)
        powers = [
            torch.fft.rfft(some * log_mel.window).abs().square() @ log_mel.filters for some in frames.split(_FRAMES)
        ]
        bands = 10.0 * torch.cat(powers).clamp(min=log_mel.amin).log10()  # (F, 64)
        rows.append(torch.cat([bands.mean(0), bands.std(0, correction=0)]).numpy())
    return np.stack(rows)


def batches_by_length(lengths: list[int], max_samples: int) -> list[list[int]]:
    """Batches of indices, by length, of at most `max_samples` including padding; a longer clip is a batch by itself."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= max_samples:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def pad(waveforms: list[np.ndarray]) -> torch.Tensor:
    """(B, T), zero beyond the end of each clip."""
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waveforms], batch_first=True)
