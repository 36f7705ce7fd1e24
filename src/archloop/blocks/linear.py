"""The linear layer of every block: typed, and initialised the same way at every width.

Weights start at a standard deviation of fan_in^-1/2, so that learning rates carry over between
widths (muP, arXiv 2203.03466, table 8) and match LFM2's 0.02 near d_model 2,048.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """``y = x W^T (+ b)``, without bias unless asked."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Normal weights of standard deviation fan_in^-1/2, zero bias."""
        with torch.no_grad():
            self.weight.normal_(0.0, self.in_features**-0.5)
            if self.bias is not None:
                self.bias.zero_()

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
