"""`python -m src.train` with two blocks in the encoder and one in the decoder of the size tiny.

    python -m tests.training.two_blocks fit ...

For one process: several would run `src.train` itself.
"""

import sys

from src.models.sizes import SIZES, Shape, Size
from src.train import main

TWO_BLOCKS = Size(Shape(192, 2, 3), Shape(192, 1, 3))

if __name__ == "__main__":
    SIZES["tiny"] = TWO_BLOCKS
    sys.exit(main())
