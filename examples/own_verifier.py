"""A verifier of one's own: `secondlook draw "..." --verifier examples.own_verifier:Colourful --out DIR`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from secondlook.types import Condition


class Colourful:
    """How far a picture's pixels are from grey, on average: [B]. Rows do not look at each other."""

    name = "colourful"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        x = samples.double() / 255
        return (x.amax(-1) - x.amin(-1)).flatten(1).mean(1).to(torch.float64)
