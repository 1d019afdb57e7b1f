"""Networks: waveform in; tokens, embeddings or a reconstruction loss out. Independent of training and data.

Shapes: B clips, T samples, F frames (10 ms), N tokens (40 ms), K visible tokens of a clip, M masked tokens of the
whole batch, D width, P values of a patch (64 mel bands x 4 frames = 256).
`mask` is True where a token is hidden from the encoder; `valid` is True where a token or frame is audio, not padding.
"""

from src.models.sizes import SIZES, build_encoder, build_mae, create_encoder, create_mae
from src.models.vit import AudioViT

__all__ = ["SIZES", "AudioViT", "build_encoder", "build_mae", "create_encoder", "create_mae"]
