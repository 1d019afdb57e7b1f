"""Start pretraining from the weights of a checkpoint or export."""

from src.encoders.load import read_checkpoint
from src.encoders.resize import resize
from src.errors import UserError
from src.models.mae import MaskedAutoencoder
from src.training.distributed.parallel import load_whole


def start_from(model: MaskedAutoencoder, path: str) -> str:
    """Load the encoder, and the decoder if the file has one of the same shape.

    Returns:
        A sentence about what was loaded.

    Raises:
        UserError: as `read_checkpoint`; or the encoder has another shape, or was cut.
    """
    stored = read_checkpoint(path)
    ours = model.encoder.architecture
    for name in ("width", "depth", "num_heads", "layer_scale"):
        if stored.architecture[name] != ours[name]:
            raise UserError(
                f"model.init_from={path} has an encoder with {name}={stored.architecture[name]}, but the settings give "
                f"{ours[name]}; change model.size (or model.layer_scale) to match"
            )
    if not stored.architecture.get("final_norm", True):
        raise UserError(
            f"model.init_from={path} has an encoder that was cut at the block which its classifier reads; start from "
            "the checkpoint that the classifier started from"
        )
    state, resized = resize(stored.encoder, stored.architecture, ours)
    load_whole(model.encoder, state)
    same = bool(stored.decoder) and stored.decoder_architecture == model.decoder.architecture
    if same:
        load_whole(model.decoder, stored.decoder)
    return "; ".join([f"starting from {path}, encoder{' and decoder' if same else '; the decoder is new'}", *resized])
