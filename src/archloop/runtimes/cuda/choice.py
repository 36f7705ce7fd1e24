"""The most likely tokens of a decode step: chosen in its course, and told to the host.

The next step may begin before the host has heard, and overwrites the ids, which it takes in. So
they are also written, beside their logits, into one of two tensors in turn: what a step told stays
until the second step after it.

Shape suffixes: B batch, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What a step writes.

    Attributes:
        ids_B: most likely ids, int64. Where a row has no largest number, any.
        told_22B: turn; ids and their logits; row. In float64, which says every id exactly; the
            logit is NaN for a row that has any.
        turns_B: steps so far, int64; their parity is the turn.
    """

    ids_B: Tensor
    told_22B: Tensor
    turns_B: Tensor

    @classmethod
    def of_rows(cls, lengths_B: Tensor) -> "Choice":
        """Room for the choices of as many rows."""
        told_22B = lengths_B.new_zeros(2, 2, *lengths_B.shape, dtype=torch.float64)
        return cls(torch.zeros_like(lengths_B), told_22B, torch.zeros_like(lengths_B))

    def take(self, logits_BV: Tensor) -> None:
        """Choose; `kernels.rows.choose_greedily` does this and counts the tokens in two kernels."""
        best_B, found_B = logits_BV.max(-1)
        self.ids_B.copy_(found_B)
        told_12B = torch.stack([found_B.double(), best_B.double()])[None]
        self.told_22B.index_copy_(0, self.turns_B[:1] % 2, told_12B)
        self.turns_B.add_(1)
