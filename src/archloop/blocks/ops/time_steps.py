"""Where the time steps of recurrent mixers start: drawn evenly on a logarithmic scale."""

import math

import torch
from torch import Tensor


def log_uniform(size: int, low: float, high: float) -> Tensor:
    """Logarithms drawn uniformly between those of `low` and `high`."""
    return torch.empty(size).uniform_(math.log(low), math.log(high))


def initial_dt_bias(num: int, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Inverse softplus of steps drawn log-uniformly between `low` and `high`."""
    dt = torch.empty(num).uniform_(math.log(low), math.log(high)).exp()
    return dt + torch.log(-torch.expm1(-dt))
