"""A low-rank matrix of a block's own beside a matrix that it shares with others.

Blocks that have one set of weights would all compute the same function. With an adapter each adds
``U D x``, of small rank, to the shared ``W x``: formally LoRA (arXiv 2106.09685), but trained with
the model, as in Zamba2 (arXiv 2411.15242).

Shape suffixes: R the ranks of all parts together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.linear import Linear


class Adapter(nn.Module):
    """One low-rank matrix for each part of a product, such as queries, keys and values.

    Args:
        in_features: width of the input.
        outputs: widths of the parts.
        rank: of each part.
    """

    def __init__(self, in_features: int, outputs: Sequence[int], rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.down = Linear(in_features, rank * len(outputs))
        """The parts' first factors, one below the other."""
        self.up = nn.ModuleList(Linear(rank, width) for width in outputs)
        for part in self.up.parameters():
            # A block starts with what it shares.
            nn.init.zeros_(part)

    def forward(self, x: Tensor, parts: slice = slice(None)) -> Tensor:
        """What is added to some of the parts, (..., their widths)."""
        first, last, _ = parts.indices(len(self.up))
        low_R = F.linear(x, self.down.weight[first * self.rank : last * self.rank])
        lows = low_R.split(self.rank, -1)
        added = [up(low) for up, low in zip(self.up[first:last], lows, strict=True)]
        return torch.cat(added, -1) if len(added) > 1 else added[0]


def num_params(in_features: int, outputs: Sequence[int], rank: int) -> int:
    """Parameters of an adapter, each of which a token meets once."""
    return rank * (in_features * len(outputs) + sum(outputs))
