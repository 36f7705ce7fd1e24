"""Choosing the next token from logits: greedy, or a draw that depends on nothing but its own row.

The randomness of a draw is a hash of the row's seed, the token's position and the token, not the
state of a generator. So a row's draws do not depend on its neighbours, and a continued sequence
never repeats its noise.

The noise is added to the logits and the largest sum wins (Gumbel's maximum, arXiv 1611.01144). So
logits that differ by rounding, as those of a chunk and of a step do, give another token only where
two sums are that close, not wherever a cumulated probability has moved.

Shape suffixes: B batch, V vocabulary.
"""

import sys
from collections.abc import Sequence
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
            # Below 1e-6 the logits divided by the temperature may overflow, and no token has a
            # probability left.
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

    @property
    def takes_largest(self) -> bool:
        """True when the largest logit wins as the model gives it."""
        return self.greedy and self.repetition_penalty == 1


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
    noise_BV = gumbel_noise(seeds_B, positions_B, logits_BV.shape[-1])
    return draw(filtered(logits_BV, sampling), noise_BV)


def row_seeds(
    seeds: Sequence[int] | None, sampling: Sampling, batch: int, device: torch.device
) -> Tensor:
    """The seed of each row, (B,).

    Raises:
        ValueError: not one seed per row.
    """
    given = (
        list(seeds)
        if seeds is not None
        else [(sampling.seed + row) % 2**63 for row in range(batch)]
    )
    if len(given) != batch:
        raise ValueError(f"{len(given)} seeds for {batch} rows")
    return torch.tensor(given, dtype=torch.int64, device=device)


def check_finite(logits_BV: Tensor, precision: str, where: str) -> None:
    """Refuse logits from which no token can be chosen: each row needs a largest one, a number.

    Raises:
        UserError: names the place and the dtype.
    """
    if not bool(logits_BV.amax(-1).isfinite().all()):
        raise not_finite(precision, where)


def choose_and_judge(
    logits_BV: Tensor,
    sampling: Sampling,
    seeds_B: Tensor,
    positions_B: Tensor,
    seen_BV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `choose`, and each row's largest logit, (B,): where that is no number, none was chosen."""
    if sampling.takes_largest:
        best_B, chosen_B = logits_BV.float().max(-1)
        return chosen_B, best_B
    chosen_B = choose(logits_BV, sampling, seeds_B, positions_B, seen_BV)
    return chosen_B, logits_BV.amax(-1)


def not_finite(precision: str, where: str) -> UserError:
    """What is wrong with logits from which none can."""
    remedy = "a wider dtype such as bfloat16 or float32 may hold them"
    if precision not in ("float16", "bfloat16"):
        remedy = "the weights may be damaged, so fetch the checkpoint again"
    return UserError(f"the logits {where} are not finite numbers in {precision}; {remedy}")


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


def draw(logits_BV: Tensor, noise_BV: Tensor) -> Tensor:
    """A token of each row, drawn with the probabilities of the logits."""
    return (logits_BV.double() + noise_BV).argmax(-1)


def gumbel_noise(seeds_B: Tensor, positions_B: Tensor, num_tokens: int) -> Tensor:
    """Gumbel-distributed float64 numbers, (B, V): a hash of seed, position and token.

    Each seed and position begin a stream of splitmix64, of which token i takes number i.
    """
    starts_B = _mix(_mix(seeds_B * _GAMMA + _GAMMA) + positions_B * _GAMMA)
    steps_V = torch.arange(1, num_tokens + 1, device=seeds_B.device) * _GAMMA
    bits_BV = _shift(_mix(starts_B[:, None] + steps_V), 11)
    # Half a step off the ends, so that neither logarithm is of zero.
    uniform_BV = (bits_BV.double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform_BV))


def _mix(z_B: Tensor) -> Tensor:
    z_B = (z_B ^ _shift(z_B, 30)) * _MIX_1
    z_B = (z_B ^ _shift(z_B, 27)) * _MIX_2
    return z_B ^ _shift(z_B, 31)


def _shift(z_B: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros, as unsigned integers do."""
    return (z_B >> bits) & ((1 << (64 - bits)) - 1)
