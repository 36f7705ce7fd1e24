"""Learning-rate schedules, as a factor on the peak rate.

Cosine (arXiv 1608.03983) decays over the whole training, so a longer one starts afresh.
Warm-up-stable-decay (arXiv 2404.06395) stays at the peak and decays over a last share, with the
1-sqrt shape of arXiv 2405.18392; a longer training continues from the weights before the decay.
"""

import math
from typing import Literal

ScheduleName = Literal["cosine", "wsd"]


def factor(
    schedule: ScheduleName,
    step: int,
    num_steps: int,
    warmup_steps: int,
    decay_share: float,
    final_factor: float,
) -> float:
    """Factor on the peak learning rate at a step counted from 0, in (0, 1].

    Args:
        schedule: shape after the warm-up.
        step: the optimiser step about to be taken.
        num_steps: steps in all.
        warmup_steps: steps of linear rise.
        decay_share: share of the steps at the end over which wsd decays.
        final_factor: what the decay would reach at step `num_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        start = decay_start(num_steps, decay_share)
        if step < start:
            return 1.0
        shape = 1 - math.sqrt((step - start + 1) / (num_steps - start + 1))
    return final_factor + (1 - final_factor) * shape


def decay_start(num_steps: int, decay_share: float) -> int:
    """First step of the decay of wsd; the weights before it can be trained further."""
    return num_steps - round(num_steps * decay_share)
