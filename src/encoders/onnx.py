"""ONNX export with the mel front end: waveform in, embedding and tokens (and logits) out, any batch size and length.

Chunks of long clips are folded into the batch dimension, so that no loop depends on the length.
"""

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.classifier import AudioClassifier
from src.models.vit import AudioViT, Layer, Pooling, pool

MAX_BYTES = 2**31 - 2**20  # weights in one file; a limit of protobuf


class _WaveformToEmbedding(nn.Module):
    """`AudioViT.forward` and `embed` for clips without padding, without control flow that depends on the length.

    Args:
        head: of a classifier; None gives no logits. frames: whether it classifies tokens.
    """

    def __init__(
        self,
        encoder: AudioViT,
        layer: Layer | Sequence[Layer],
        pooling: Pooling,
        head: nn.Module | None = None,
        frames: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.layer, self.pooling, self.head, self.frames = encoder, layer, pooling, head, frames

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        """(B, T) -> logits (B, C) or (B, N, C) with a head, embedding (B, D), tokens (B, N, D)."""
        encoder = self.encoder
        short: int = torch.sym_max(encoder.log_mel.min_samples - waveform.shape[1], 0)  # type: ignore[assignment]
        waveform = nn.functional.pad(waveform, (0, short))
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
        embedding = pool(tokens, count, self.pooling)
        if self.head is None:
            return embedding, tokens
        return self.head(tokens if self.frames else embedding), embedding, tokens


def export_onnx(encoder: AudioViT, file: Path, layer: Layer = None, pooling: Pooling = "mean") -> None:
    """Export `encoder` for onnxruntime: input `waveform` (B, T), outputs `embedding` (B, D) and `tokens` (B, N, D).

    Weights of 2 GB and more are stored in a separate file, `<file>.data`.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    _export(_WaveformToEmbedding(encoder, layer, pooling), file, {})


def export_onnx_classifier(classifier: AudioClassifier, file: Path) -> None:
    """As `export_onnx`, with `logits` (B, C), or (B, N, C) of a frame-level classifier, as the first output.

    Layer and pooling are the classifier's. The model's metadata has `class_names` (a JSON list, one per logit) and
    `activation` (softmax or sigmoid), which turns logits into probabilities.
    """
    frames, pooling = classifier.pooling is None, classifier.pooling or "mean"
    network = _WaveformToEmbedding(classifier.encoder, classifier.layer, pooling, classifier.head, frames)
    about = {
        "class_names": json.dumps(classifier.class_names),
        "activation": "sigmoid" if classifier.multi else "softmax",
    }
    _export(network, file, about)


def _export(network: _WaveformToEmbedding, file: Path, about: dict[str, str]) -> None:
    """Raises UserError: onnx or onnxscript is not installed."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX export needs two more packages: pip install onnx onnxscript") from None
    encoder = network.encoder
    network.training = False
    example = torch.zeros(2, 20 * encoder.sample_rate)
    batch = torch.export.Dim("batch", min=1)
    samples = torch.export.Dim("samples", min=1)
    with _quiet(), _evaluating(encoder):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch, 1: samples},),
            input_names=["waveform"],
            output_names=[*(["logits"] if network.head is not None else []), "embedding", "tokens"],
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces with this machine's paths
        program.model.metadata_props.update(about)
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
