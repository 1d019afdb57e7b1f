"""The encoder: a ViT of timm blocks over log-mel tokens of 64 bands x 4 frames (Dasheng, section 2).

Parameter names follow timm and the official encoder, which keeps weight conversion short.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from src.models.log_mel import LogMel, MelBatchNorm

Pooling = Literal["mean", "max", "mean_std", "mean_max"]
Layer = int | None  # block whose output is used: 1 to depth, 0 for the patch embedding; None: the final norm's output


class PatchEmbed(nn.Module):
    """Linear projection of patches; the weight has the shape of timm's convolution.

    Args:
        dct: the projection is a discrete cosine transform (`src.models.initialize`) and is not trained.
    """

    def __init__(self, n_mels: int, patch_frames: int, width: int, dct: bool = False) -> None:
        super().__init__()
        self.patch_frames, self.dct = patch_frames, dct
        self.proj = nn.Conv2d(1, width, (n_mels, patch_frames), (n_mels, patch_frames)).requires_grad_(not dct)

    def patchify(self, log_mel: Tensor) -> Tensor:
        """(B, n_mels, F) -> (B, N, P), values ordered by band, then frame. An incomplete last patch is dropped."""
        num_patches = log_mel.shape[2] // self.patch_frames
        log_mel = log_mel[:, :, : num_patches * self.patch_frames]
        return log_mel.unflatten(2, (num_patches, self.patch_frames)).transpose(1, 2).flatten(2)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, P) in fp32 -> (B, N, D) in the dtype of the weights."""
        return nn.functional.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class AudioViT(nn.Module):
    """Audio encoder.

    Args:
        width: embedding dimension D.
        depth: number of blocks.
        num_heads: attention heads per block; must divide `width`.
        drop_path: stochastic depth rate of the last block, increasing linearly from 0 in the first.
        layer_scale: initial value of LayerScale; None disables it.
        gradient_checkpointing: recompute activations in the backward pass.
        max_tokens: size of the time position table; longer clips are encoded in consecutive chunks of this many tokens.
        patch_frames: frames per token.
        final_norm: normalize the last block's output; False for an encoder that was cut at a block (`cut`).
        log_mel: front end; None uses the paper's.
        dct_patches: the patch projection starts as a discrete cosine transform; neither it nor the scale and shift of
            the input's batch norm are trained. False is the paper's: all of them learn.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        gradient_checkpointing: bool = False,
        max_tokens: int = 252,
        patch_frames: int = 4,
        final_norm: bool = True,
        log_mel: LogMel | None = None,
        dct_patches: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.depth, self.num_heads, self.max_tokens = width, depth, num_heads, max_tokens
        self.drop_path, self.layer_scale, self.final_norm = drop_path, layer_scale, final_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.log_mel = log_mel or LogMel()
        one_token = (patch_frames - 1) * self.log_mel.hop_length
        self.log_mel.min_samples = max(self.log_mel.min_samples, one_token)
        self.init_bn = MelBatchNorm(self.log_mel.n_mels).requires_grad_(not dct_patches)
        self.patch_embed = PatchEmbed(self.log_mel.n_mels, patch_frames, width, dct_patches)
        self.time_pos_embed = nn.Parameter(torch.zeros(1, width, 1, max_tokens))
        self.freq_pos_embed = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.blocks = nn.ModuleList(
            make_block(width, num_heads, drop_path * i / max(depth - 1, 1), layer_scale) for i in range(depth)
        )
        self.norm = LayerNorm(width, eps=1e-6) if final_norm else nn.Identity()

    def cut(self, layer: int) -> "AudioViT":
        """The encoder up to block `layer`, whose output it returns: without the blocks above and the final norm.

        It shares the weights of this encoder. Drop-path reaches its full rate in block `layer`.
        """
        assert 0 <= layer <= self.depth, f"layer {layer} is not in 0 to {self.depth}"
        with torch.device("meta"):
            encoder = AudioViT(
                self.embed_dim, layer, self.num_heads, self.drop_path, self.layer_scale, self.gradient_checkpointing,
                self.max_tokens, self.patch_embed.patch_frames, final_norm=False, log_mel=self.log_mel,
            )  # fmt: skip
        state = self.state_dict()
        encoder.load_state_dict({name: state[name] for name in encoder.state_dict()}, assign=True)
        return encoder.train(self.training)

    @property
    def architecture(self) -> dict[str, Any]:
        """Plain values from which `src.models.build_encoder` builds a network that can load these weights."""
        return {
            "width": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "layer_scale": self.layer_scale,
            "max_tokens": self.max_tokens,
            "patch_frames": self.patch_embed.patch_frames,
            "final_norm": self.final_norm,
            "log_mel": self.log_mel.settings,
        }

    @property
    def sample_rate(self) -> int:
        return self.log_mel.sample_rate

    @property
    def hop_seconds(self) -> float:
        """Seconds between tokens."""
        return self.patch_embed.patch_frames * self.log_mel.hop_length / self.sample_rate

    def num_tokens(self, length):
        """Number of tokens of a clip of `length` samples (int or tensor)."""
        return self.log_mel.num_frames(length) // self.patch_embed.patch_frames

    def token_times(self, num_tokens: int) -> Tensor:
        """(N,) centers of the tokens in seconds: the mean of their frames' centers (0.015, 0.055, ...)."""
        first = (self.patch_embed.patch_frames - 1) / 2 * self.log_mel.hop_length / self.sample_rate
        return first + torch.arange(num_tokens) * self.hop_seconds

    def forward(self, waveform: Tensor, length: Tensor | None = None, layer: Layer | Sequence[Layer] = None) -> Tensor:
        """Tokens of each clip, independent of the rest of the batch.

        Args:
            waveform: (B, T) at `sample_rate`, in [-1, 1]; samples beyond `length` are ignored.
            length: (B,) samples per clip; None when no row is padded.
            layer: return the output of this block (1 is the first, 0 the patch embedding) instead of the final norm's.
                Several layers are concatenated along the last dimension, in the order given.

        Returns:
            (B, N, D); tokens beyond `num_tokens(length)` are zero.
        """
        log_mel, valid = self.log_mel(waveform, length)
        return self.encode_mel(log_mel, valid, layer)

    def encode_mel(self, log_mel: Tensor, valid: Tensor | None, layer: Layer | Sequence[Layer] = None) -> Tensor:
        """As `forward`, from what `self.log_mel` returned: (B, n_mels, F) in dB, and (B, F) bool or None."""
        patches, valid = self._normalized_patches(log_mel, valid)
        chunks = []
        for start in range(0, patches.shape[1], self.max_tokens):
            part = slice(start, start + self.max_tokens)
            part_valid = None if valid is None else valid[:, part]
            chunks.append(self.encode_chunk(patches[:, part], part_valid, layer))
        tokens = chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)
        return tokens if valid is None else tokens * valid[..., None]

    def embed(
        self,
        waveform: Tensor,
        length: Tensor | None = None,
        layer: Layer | Sequence[Layer] = None,
        pooling: Pooling = "mean",
    ) -> Tensor:
        """One vector per clip, (B, D) or (B, 2 D). Arguments as in `forward`; `pooling` as in `pool`."""
        tokens = self(waveform, length, layer)
        full = torch.full((len(waveform),), waveform.shape[1], device=waveform.device)
        return pool(tokens, self.num_tokens(full if length is None else length), pooling)

    def tokenize(self, waveform: Tensor, length: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normalized patches (B, N, P), the same in dB, and (B, N) bool, True for real ones, None when all are."""
        log_mel, valid = self.log_mel(waveform, length)
        patches, valid = self._normalized_patches(log_mel, valid)
        return patches, self.patch_embed.patchify(log_mel), valid

    def _normalized_patches(self, log_mel: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        frames = self.patch_embed.patch_frames
        patches = self.patch_embed.patchify(self.init_bn(log_mel, valid))
        return patches, None if valid is None else valid[:, frames - 1 :: frames]  # real when its last frame is

    def positions(self) -> Tensor:
        """Position embeddings (1, max_tokens, D)."""
        return (self.time_pos_embed + self.freq_pos_embed).flatten(2).transpose(1, 2)

    def encode_chunk(self, patches: Tensor, valid: Tensor | None, layer: Layer | Sequence[Layer] = None) -> Tensor:
        """At most `max_tokens` consecutive normalized patches (B, N, P) -> (B, N, D). `layer` as in `forward`."""
        tokens = self.patch_embed(patches)
        return self.encode(tokens + self.positions()[:, : tokens.shape[1]], valid, layer)

    def encode(self, tokens: Tensor, valid: Tensor | None, layer: Layer | Sequence[Layer] = None) -> Tensor:
        """Run tokens (B, N, D) through the blocks; padding is not attended to. `layer` as in `forward`."""
        wanted = list(layer) if isinstance(layer, Sequence) else [layer]
        ends = [self.depth if number is None else number for number in wanted]
        assert all(0 <= end <= self.depth for end in ends), f"layer {layer} is not in 0 to {self.depth}"
        outputs, start = {}, 0
        for end in sorted(set(ends)):
            recompute = self.gradient_checkpointing and self.training
            tokens = run_blocks(self.blocks[start:end], tokens, valid, recompute)
            outputs[end], start = tokens, end
        read = [
            self.norm(outputs[end]) if number is None else outputs[end]
            for number, end in zip(wanted, ends, strict=True)
        ]
        return read[0] if len(read) == 1 else torch.cat(read, dim=-1)


def make_block(width: int, num_heads: int, drop_path: float = 0.0, layer_scale: float | None = None) -> Block:
    """timm's pre-norm block with the paper's settings."""
    return Block(width, num_heads, qkv_bias=True, drop_path=drop_path, init_values=layer_scale)


def run_blocks(blocks: nn.ModuleList, tokens: Tensor, valid: Tensor | None, recompute: bool = False) -> Tensor:
    """Run tokens (B, N, D) through timm blocks. valid: (B, N) bool, True for tokens that may be attended to."""
    attended = None
    if valid is not None:
        # A row without real tokens (a chunk beyond the end of a short clip) attends to all; its output is discarded.
        attended = (valid | ~valid.any(1, keepdim=True))[:, None, None]
    for block in blocks:
        run = partial(checkpoint, block, use_reentrant=False) if recompute else block
        tokens = run(tokens, attended)
    return tokens


def pool(tokens: Tensor, num_tokens: Tensor, pooling: Pooling = "mean") -> Tensor:
    """Pool the real tokens of each clip into one vector.

    Args:
        tokens: (B, N, D).
        num_tokens: (B,) number of real tokens per row; they come first.
        pooling: "mean" (as in the paper) and "max" give (B, D); "mean_std" and "mean_max" give (B, 2 D): the mean, then
            the standard deviation or maximum over time.
    """
    valid = (torch.arange(tokens.shape[1], device=tokens.device) < num_tokens[:, None])[..., None]
    if pooling == "max":
        return tokens.masked_fill(~valid, -torch.inf).amax(1)
    count = num_tokens[:, None].float()  # half precision has no whole numbers above 256
    mean = ((tokens * valid).sum(1, dtype=torch.float32) / count).to(tokens.dtype)
    if pooling == "mean":
        return mean
    if pooling == "mean_max":
        return torch.cat([mean, pool(tokens, num_tokens, "max")], dim=1)
    variance = ((tokens - mean[:, None]).square() * valid).sum(1, dtype=torch.float32) / count
    return torch.cat(
        [mean, variance.clamp(min=1e-12).sqrt().to(tokens.dtype)], dim=1
    )  # sqrt has no gradient at 0 (one-token clips)
