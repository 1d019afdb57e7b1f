"""Parameters, FLOPs and memory of a training step of a masked autoencoder."""

from src.models.mae import MaskedAutoencoder


def count_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def forward_flops(model: MaskedAutoencoder, tokens: int, kept: int) -> float:
    """FLOPs of the matrix products of one clip's forward pass; forward and backward take three times as many."""
    masked = tokens - kept
    output = 2 * masked * model.decoder.outputlayer.weight.numel()
    embed = 2 * kept * (model.encoder.patch_embed.proj.weight.numel() + model.decoder.input_proj.weight.numel())
    return blocks_flops(model.encoder, kept) + blocks_flops(model.decoder, tokens) + embed + output


def training_flops(model: MaskedAutoencoder, samples: int) -> float:
    """Of a training step on one clip of so many samples, without what is recomputed."""
    tokens = model.encoder.num_tokens(samples)
    kept = max(1, int(tokens * (1 - model.mask_ratio) + 1e-9))
    return 3 * forward_flops(model, tokens, kept)


def blocks_flops(part, tokens: int) -> float:
    matrices = sum(p.numel() for p in part.blocks.parameters() if p.ndim == 2)
    width = part.blocks[0].norm1.weight.numel()
    return 2 * tokens * matrices + 4 * tokens**2 * width * len(part.blocks)


def memory_bytes(
    model: MaskedAutoencoder,
    tokens: int,
    kept: int,
    clips: float,
    bf16: bool,
    recompute: bool,
    num_shards: int = 1,
    state_bytes: int = 16,
) -> float:
    """Peak memory of one process: parameters with their state, and activations for the backward pass.

    The 16 bytes per parameter are the fp32 weight, its gradient and AdamW's two moments. Each of `num_shards` processes
    holds one shard and, temporarily unsharded, the weights of two blocks (one is prefetched), the gradient of one block
    and a copy of that gradient for the reduce-scatter.

    A block keeps 16 x width values per token: inputs and outputs of two norms, query, key, value, the attention output,
    and the MLP's hidden layer before and after GELU. With recomputation the encoder keeps one x width per block, and
    all 16 of one block.
    """
    bytes_per_value = 2 if bf16 else 4
    state = state_bytes * (count_parameters(model.encoder) + count_parameters(model.decoder)) / num_shards
    if num_shards > 1:
        largest = max(count_parameters(part.blocks[0]) for part in (model.encoder, model.decoder))
        state += largest * (3 * bytes_per_value + 4)
    depth, width = len(model.encoder.blocks), model.encoder.embed_dim
    values_per_token = (depth + 16) * width if recompute else depth * 16 * width
    decoder_width = model.decoder.mask_token.shape[-1]
    values = kept * values_per_token + tokens * len(model.decoder.blocks) * 16 * decoder_width
    front_end = tokens * 4 * (2 * 512 + 2 * 257 + 4 * 64) * 4  # frames, spectrum and mel, fp32
    return state + clips * (values * bytes_per_value + front_end)
