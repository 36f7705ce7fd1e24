"""Logits of a short prompt and some decode steps, from eager PyTorch and from a session.

Shape suffixes: B batch, T time, R rows of logits (the prompt's last, then one per step),
V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from archloop.blocks.channel_mixers.moe import MoE
from archloop.runtimes.base import Logits, Session
from archloop.stack.decoder import Decoder


@contextmanager
def decided_experts(decoder: Decoder) -> Iterator[bool]:
    """While inside, selection biases are so far apart that they alone choose the experts.

    Scores that nearly tie fall either way under any rounding, and another expert moves a logit by
    standard deviations: no comparison of two engines survives that. Gives False, and changes
    nothing, where no router has a bias.
    """
    routers = [m for m in decoder.modules() if isinstance(m, MoE) and m.config.use_bias]
    before = [moe.expert_bias.clone() for moe in routers]
    generator = torch.Generator().manual_seed(0)
    for moe in routers:
        # Scores lie between 0 and 1. Another order in each block, so that all indices occur.
        moe.expert_bias.copy_(2.0 * torch.randperm(len(moe.expert_bias), generator=generator))
    try:
        yield bool(routers)
    finally:
        for moe, bias in zip(routers, before, strict=True):
            moe.expert_bias.copy_(bias)


def distance(found: Logits, expected: Logits) -> float:
    """Largest difference of a logit, in standard deviations of the expected ones."""
    return float(np.abs(found - expected).max() / max(float(expected.std()), 1e-30))


def eager_logits(
    decoder: Decoder, prompt: list[int], more: list[int], dtype: str, *, weights: str | None = None
) -> Logits:
    """Logits (R, V) of the decoder itself, which is left as it was.

    Args:
        decoder: weights in any precision.
        prompt: tokens of the prefill.
        more: tokens of the decode steps.
        dtype: that is computed in.
        weights: precision that weights are rounded to first; None leaves them.
    """
    for wanted in (getattr(torch, name) for name in (weights, dtype) if name):
        if decoder.embedding.weight.dtype != wanted:
            decoder = copy.deepcopy(decoder).to(wanted)
    was_training = decoder.training
    decoder.eval()
    state = decoder.init_state(1, len(prompt) + len(more))
    rows = [decoder.prefill(torch.tensor([prompt]), state)]
    rows += [decoder.step(torch.tensor([token]), state) for token in more]
    decoder.train(was_training)
    logits_RV: Logits = torch.cat(rows).float().numpy()
    return logits_RV


def session_logits(session: Session, prompt: list[int], more: list[int]) -> Logits:
    """Logits (R, V) of a session, the prompt given in two parts so that state must carry over."""
    middle = len(prompt) - 3
    session.prefill(prompt[:middle])
    rows = [session.prefill(prompt[middle:]), *(session.decode_step(token) for token in more)]
    return np.stack(rows)
