"""Root-mean-square normalisation (arXiv 1910.07467), computed in at least float32."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from archloop.blocks.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """``w * x / sqrt(mean(x^2) + eps)`` over the last dimension, or 1 + w in place of w.

    The latter, with an offset, is how Gemma stores its norms. In 16 bits a weight near zero is more
    exact than one near one, so the sum is taken in float32 where the norm is applied.
    """

    def __init__(self, width: int, eps: float = 1e-5, *, offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if offset else torch.ones(width))
        self.eps, self.offset = eps, offset

    @property
    def scale(self) -> Tensor:
        """What the normed input is multiplied by; with an offset in at least float32."""
        if not self.offset:
            return self.weight
        return 1 + self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        normed = rms_norm(x, self.scale, self.eps)
        if not self.offset:
            return normed
        return normed.to(torch.promote_types(x.dtype, self.weight.dtype))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
