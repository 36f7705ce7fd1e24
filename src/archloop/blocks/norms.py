"""Root-mean-square normalisation (arXiv 1910.07467), computed in at least float32."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from archloop.blocks.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """``w * x / sqrt(mean(x^2) + eps)`` over the last dimension."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
