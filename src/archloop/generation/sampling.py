"""Choosing the next token from logits: greedy, or a draw that depends on nothing but its own row.

The randomness of a draw is a hash of the row's seed and the token's position, not the state of a
generator. So a row's tokens do not depend on its neighbours, a continued sequence never repeats
its noise, and verifying a draft gives exactly the tokens that plain decoding would.

Shape suffixes: B batch, V vocabulary.
"""

import sys
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from archloop.errors import UserError

_GAMMA = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685
"""Constants of splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195), as signed."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The default is greedy; filters apply in the order of the fields.

    Attributes:
        repetition_penalty: divides positive and multiplies negative logits of tokens that occur
            in the row, prompt included (arXiv 1909.05858); 1 is off.
        temperature: divides the logits; 0 takes the largest.
        top_k: keep the k largest; None keeps all.
        top_p: keep the fewest tokens that hold this much probability (arXiv 1904.09751).
        min_p: drop tokens less probable than this share of the best one (arXiv 2407.01082).
        seed: of the first row; row i takes ``seed + i`` unless rows are given seeds of their own.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        t, most = self.temperature, sys.float_info.max
        counted = isinstance(self.top_k, Integral) and self.top_k is not True
        allowed = {
            "repetition_penalty above 0": 0 < self.repetition_penalty <= most,
            # Below, the quotient may overflow and no token is left to draw.
            "temperature 0, or from 1e-6 up": t == 0 or 1e-6 <= t <= most,
            "top_k a whole number, at least 1": self.top_k is None or (counted and self.top_k >= 1),
            "top_p above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p from 0 to 1": 0 <= self.min_p <= 1,
            "seed a whole number from 0 to 2**63 - 1": isinstance(self.seed, Integral)
            and 0 <= self.seed < 2**63,
        }
        for rule, holds in allowed.items():
            if not holds:
                raise UserError(f"{self} is not allowed: {rule}")

    @property
    def greedy(self) -> bool:
        """True when nothing is drawn at random."""
        return self.temperature == 0


GREEDY = Sampling()


def choose(
    logits_BV: Tensor,
    sampling: Sampling,
    seeds_B: Tensor,
    positions_B: Tensor,
    seen_BV: Tensor | None = None,
) -> Tensor:
    """The next token of each row, (B,).

    Args:
        logits_BV: of any float dtype.
        sampling: filters and temperature.
        seeds_B: int64 seed of each row.
        positions_B: int64 position of the token to choose, which varies the noise.
        seen_BV: True at tokens that occur in the row; needed with a repetition penalty.
    """
    logits_BV = logits_BV.float()
    if sampling.repetition_penalty != 1:
        assert seen_BV is not None, "a repetition penalty needs the tokens seen so far"
        logits_BV = penalise(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.greedy:
        return logits_BV.argmax(-1)
    return draw(filtered(logits_BV, sampling), uniform(seeds_B, positions_B))


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits with those of seen tokens pushed down."""
    pushed_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, pushed_BV, logits_BV)


def filtered(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Logits over the temperature, minus infinity where a filter drops a token."""
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(sampling.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    if sampling.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        before_BV = sorted_BV.softmax(-1).cumsum(-1) - sorted_BV.softmax(-1)
        drop_BV = (before_BV >= sampling.top_p).scatter(1, order_BV, before_BV >= sampling.top_p)
        logits_BV = logits_BV.masked_fill(drop_BV, -torch.inf)
    if sampling.min_p > 0:
        probs_BV = logits_BV.softmax(-1)
        floor_B1 = sampling.min_p * probs_BV.amax(-1, keepdim=True)
        logits_BV = logits_BV.masked_fill(probs_BV < floor_B1, -torch.inf)
    return logits_BV


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Inverse-CDF sampling: the token whose slice of probability holds each uniform number."""
    probs_BV = logits_BV.double().softmax(-1)
    cdf_BV = probs_BV.cumsum(-1)
    at_B1 = uniform_B[:, None] * cdf_BV[:, -1:]
    chosen_B = torch.searchsorted(cdf_BV, at_B1, right=True)[:, 0]
    # Rounding may point past the last token that has any probability.
    ranks_V = torch.arange(probs_BV.shape[-1], device=probs_BV.device)
    last_B = torch.where(probs_BV > 0, ranks_V, 0).amax(-1)
    return torch.minimum(chosen_B, last_B)


def uniform(seeds_B: Tensor, positions_B: Tensor) -> Tensor:
    """Float64 numbers in [0, 1), one for each pair of a seed and a position."""
    bits_B = _mix(_mix(seeds_B * _GAMMA + _GAMMA) + positions_B * _GAMMA)
    return _shift(bits_B, 11).double() * 2.0**-53


def _mix(z_B: Tensor) -> Tensor:
    z_B = (z_B ^ _shift(z_B, 30)) * _MIX_1
    z_B = (z_B ^ _shift(z_B, 27)) * _MIX_2
    return z_B ^ _shift(z_B, 31)


def _shift(z_B: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros, as unsigned integers do."""
    return (z_B >> bits) & ((1 << (64 - bits)) - 1)
