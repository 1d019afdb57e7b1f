"""Head of the contrastive objective: embeddings in, unit vectors to compare out. It is dropped after pretraining."""

from torch import Tensor, nn


class Projector(nn.Module):
    """Two-layer MLP (Chen et al., 2020, SimCLR) with layer norm, so that a clip's vector does not depend on its batch.

    Args:
        input_width: width of the encoder.
        width, output_width: of the hidden layer and of the vectors.
    """

    def __init__(self, input_width: int, width: int = 512, output_width: int = 128) -> None:
        super().__init__()
        self.architecture = {"input_width": input_width, "width": width, "output_width": output_width}
        self.hidden = nn.Linear(input_width, width)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, output_width)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) -> (B, output_width) of unit length, fp32."""
        hidden = nn.functional.gelu(self.norm(self.hidden(embedding)))
        return nn.functional.normalize(self.output(hidden).float(), dim=-1)
