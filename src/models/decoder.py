"""Decoder of the masked autoencoder: visible tokens and mask tokens in, predicted patches of the masked tokens out."""

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

from src.models.masking import Mask
from src.models.vit import make_block, run_blocks


class Decoder(nn.Module):
    """Transformer decoder.

    Args:
        input_width: width of the encoder.
        width, depth, num_heads: of the decoder.
        patch_size: P, the values predicted per token.
        max_tokens: size of the position table, hence the longest clip.
    """

    def __init__(
        self, input_width: int, width: int, depth: int, num_heads: int, patch_size: int = 256, max_tokens: int = 252
    ) -> None:
        super().__init__()
        self.architecture = {
            "input_width": input_width,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "patch_size": patch_size,
            "max_tokens": max_tokens,
        }
        self.input_proj = nn.Linear(input_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, max_tokens, width))
        self.blocks = nn.ModuleList(make_block(width, num_heads) for _ in range(depth))
        self.norm = LayerNorm(width, eps=1e-6)
        self.outputlayer = nn.Linear(width, patch_size)

    def forward(self, latent: Tensor, mask: Mask, valid: Tensor | None) -> Tensor:
        """Predicted patches of the masked tokens.

        Args:
            latent: (B, K, D) encoder output of the visible tokens.
            mask: which tokens were hidden.
            valid: (B, N) bool, True for real tokens; None when all are.

        Returns:
            (M, P), in the order of `mask.masked`; the output layer runs on masked tokens only.
        """
        seen = self.input_proj(latent)
        holes = self.mask_token.to(seen.dtype).expand(len(seen), mask.mask.shape[1], -1)
        index = mask.visible[..., None].expand_as(seen)
        if mask.visible_valid is not None:  # surplus entries of shorter clips write back the mask token
            seen = torch.where(mask.visible_valid[..., None], seen, holes[:, : seen.shape[1]])
        tokens = holes.scatter(1, index, seen) + self.pos_embed[:, : holes.shape[1]].to(seen.dtype)
        tokens = run_blocks(self.blocks, tokens, valid)
        return self.outputlayer(self.norm(tokens.flatten(0, 1).index_select(0, mask.masked)))
