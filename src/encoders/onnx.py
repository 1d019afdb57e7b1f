"""ONNX export with the mel front end included: waveform in, embedding and tokens out, any batch size and length.

Chunks of long clips are folded into the batch dimension, so that no loop depends on the length.
"""

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.vit import AudioViT, Layer, Pooling, pool

MAX_BYTES = 2**31 - 2**20  # weights in one file; a limit of protobuf


class _WaveformToEmbedding(nn.Module):
    """`AudioViT.forward` and `embed` for clips without padding, without control flow that depends on the length."""

    def __init__(self, encoder: AudioViT, layer: Layer, pooling: Pooling) -> None:
        super().__init__()
        self.encoder, self.layer, self.pooling = encoder, layer, pooling

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> embedding (B, D), tokens (B, N, D)."""
        encoder = self.encoder
        patches, _, _ = encoder.tokenize(waveform, None)
        batch, num_tokens = patches.shape[0], patches.shape[1]
        size = torch.sym_min(num_tokens, encoder.max_tokens)  # tokens per chunk
        num_chunks = (num_tokens + size - 1) // size
        missing: int = num_chunks * size - num_tokens  # type: ignore[assignment]  # SymInt during export
        patches = nn.functional.pad(patches, (0, 0, 0, missing))
        valid = torch.arange(num_chunks * size, device=patches.device) < num_tokens
        folded = patches.reshape(batch * num_chunks, size, patches.shape[2])
        folded_valid = valid.reshape(1, num_chunks, size).expand(batch, -1, -1).reshape(batch * num_chunks, size)
        tokens = encoder.encode_chunk(folded, folded_valid, self.layer)
        tokens = tokens.reshape(batch, num_chunks * size, tokens.shape[2])[:, :num_tokens]
        count = torch.full((1,), 1, device=tokens.device).expand(batch) * num_tokens
        return pool(tokens, count, self.pooling), tokens


def export_onnx(encoder: AudioViT, file: Path, layer: Layer = None, pooling: Pooling = "mean") -> None:
    """Export `encoder` for onnxruntime: input `waveform` (B, T), outputs `embedding` (B, D) and `tokens` (B, N, D).

    T has to be at least `encoder.log_mel.min_samples` (50 ms); zero-pad shorter clips, as the encoder does.
    Weights of 2 GB and more are stored in a separate file, `<file>.data`.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX export needs two more packages: pip install onnx onnxscript") from None
    network = _WaveformToEmbedding(encoder, layer, pooling)
    network.training = False
    example = torch.zeros(2, 20 * encoder.sample_rate)
    batch = torch.export.Dim("batch", min=1)
    samples = torch.export.Dim("samples", min=encoder.log_mel.min_samples)
    with _quiet(), _evaluating(encoder):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch, 1: samples},),
            input_names=["waveform"],
            output_names=["embedding", "tokens"],
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces with this machine's paths
        large = sum(parameter.numel() for parameter in encoder.parameters()) * 4 > MAX_BYTES
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            program.save(Path(folder, file.name), external_data=large)
            for written in sorted(Path(folder).iterdir(), key=lambda path: path.name == file.name):
                os.replace(written, file.parent / written.name)  # weights first, the .onnx file last


@contextlib.contextmanager
def _evaluating(encoder: AudioViT) -> Iterator[None]:
    """Switch to evaluation mode; restores the mode afterwards."""
    was_training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which writes to stdout and the log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
