"""Weights to start from that are not the initial ones."""

from src.encoders.load import read_checkpoint
from src.encoders.resize import resize
from src.errors import UserError
from src.models.mae import MaskedAutoencoder
from src.training.distributed.parallel import load_whole


def start_from(model: MaskedAutoencoder, path: str) -> str:
    """Give the encoder, and the decoder where there is one of the same shape, the weights of a checkpoint or export.

    Returns:
        A sentence that says what was taken.

    Raises:
        UserError: as `read_checkpoint`; an encoder of another shape.
    """
    stored = read_checkpoint(path)
    ours = model.encoder.architecture
    for name in ("width", "depth", "num_heads", "layer_scale"):
        if stored.architecture[name] != ours[name]:
            raise UserError(
                f"model.init_from={path} is an encoder with {name}={stored.architecture[name]}, the settings make one "
                f"with {ours[name]}; set model.size (or model.layer_scale) to fit"
            )
    state, resized = resize(stored.encoder, stored.architecture, ours)
    load_whole(model.encoder, state)
    same = bool(stored.decoder) and stored.decoder_architecture == model.decoder.architecture
    if same:
        load_whole(model.decoder, stored.decoder)
    return "; ".join([f"starting from {path}, encoder{' and decoder' if same else '; the decoder is new'}", *resized])
