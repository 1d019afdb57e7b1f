"""The decoder of the masked autoencoder: visible tokens and mask tokens in, predictions for the masked ones out."""

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

from src.models.masking import Mask
from src.models.vit import make_block, run_blocks


class Decoder(nn.Module):
    """Args: input_width: of the encoder. patch_size: values it predicts a token. max_tokens: longest clip."""

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
            mask: what was hidden. valid: (B, N) real tokens; None when all are.

        Returns:
            (M, P), in the order of `mask.mask.nonzero()`: only these pass the output layer.
        """
        seen = self.input_proj(latent)
        holes = self.mask_token.to(seen.dtype).expand(len(seen), mask.mask.shape[1], -1)
        index = mask.visible[..., None].expand_as(seen)
        if mask.visible_valid is not None:  # the surplus of shorter clips leaves its mask token where it is
            seen = torch.where(mask.visible_valid[..., None], seen, holes[:, : seen.shape[1]])
        tokens = holes.scatter(1, index, seen) + self.pos_embed[:, : holes.shape[1]]
        tokens = run_blocks(self.blocks, tokens, valid)
        return self.outputlayer(self.norm(tokens[mask.mask]))
