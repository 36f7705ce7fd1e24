"""Where recurrences compute: at least float32, and float64 when the model is float64."""

import torch
from torch import Tensor


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of log-decays, cumulative sums and recurrent state for a model of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def precise(x: Tensor) -> Tensor:
    """`x` in that dtype."""
    return x.to(precise_dtype(x.dtype))
