"""Experts chosen beyond doubt while logits are compared.

Scores that nearly tie fall either way under any rounding, and another expert moves a logit by
standard deviations: no comparison of two engines survives that, nor does one of eager PyTorch with
itself. So the comparison is of the same stack with other routers, whose choices no rounding turns.

Shape suffixes: X tokens, D model width, E experts.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from archloop.blocks.channel_mixers.moe import MoE
from archloop.runtimes.parity import case_tokens
from archloop.stack.decoder import Decoder

_RIDGE = 0.1
"""Of a token's squared length: keeps the direction short where tokens are alike."""
_LEAST = 0.25
"""Of a token's part in the direction, whose mean is near 1: below it rounding may turn its sign."""


@contextmanager
def decided_experts(decoder: Decoder) -> Iterator[bool]:
    """While inside, no rounding changes which experts act on the tokens of a `parity.Case`.

    Selection biases are so far apart that they alone choose. A router without one gets weights
    that score all its experts along one direction, in which all the tokens lie on one side, with a
    wide gap below those that act; where the tokens have no such direction it is left as it is.

    Gives whether any router was changed.
    """
    routers = [m for m in decoder.modules() if isinstance(m, MoE)]
    biases = [m.expert_bias for m in routers if _reads_bias(m)]
    others = [m for m in routers if not _reads_bias(m) and m.config.top_k < m.config.num_experts]
    touched: list[Tensor] = biases + [m.router.weight for m in others]
    before = [tensor.detach().clone() for tensor in touched]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for bias_E in biases:
                # Scores lie between 0 and 1. Another order in each block: all indices occur.
                bias_E.copy_(2.0 * torch.randperm(len(bias_E), generator=generator))
            if others:
                _decide_by_weights(decoder, others, generator)
        yield any(not now.equal(old) for now, old in zip(touched, before, strict=True))
    finally:
        with torch.no_grad():
            for tensor, old in zip(touched, before, strict=True):
                tensor.copy_(old)


def _reads_bias(moe: MoE) -> bool:
    return moe.config.use_bias and moe.config.router != "granite"


def _decide_by_weights(decoder: Decoder, routers: list[MoE], generator: torch.Generator) -> None:
    """Other weights for routers, each before its first tokens: they follow from what it reads."""
    seen: set[int] = set()

    def decide(moe: nn.Module, args: tuple[Tensor]) -> None:
        assert isinstance(moe, MoE)
        # Blocks may share a router, which then serves the first of them.
        if id(moe.router.weight) in seen:
            return
        seen.add(id(moe.router.weight))
        direction_D = _common_direction(args[0].flatten(0, -2).double())
        if direction_D is not None:
            scores_E = _spread(moe.config.num_experts, moe.config.top_k, generator)
            moe.router.weight.copy_(scores_E[:, None] * direction_D)

    ids = case_tokens(decoder.spec.vocab_size)
    with ExitStack() as after:
        after.callback(decoder.train, decoder.training)
        for moe in routers:
            after.callback(moe.register_forward_pre_hook(decide).remove)
        decoder.eval()
        decoder.prefill(torch.tensor([ids]), decoder.init_state(1, len(ids)))


def _common_direction(x_XD: Tensor) -> Tensor | None:
    """A short vector (D) whose product with every token is near 1, by ridge regression."""
    gram_XX = x_XD @ x_XD.T
    ridge_X = _RIDGE * gram_XX.diagonal().mean() * torch.ones_like(gram_XX[0])
    weights_X = torch.linalg.solve(gram_XX + ridge_X.diag(), torch.ones_like(ridge_X))
    direction_D = weights_X @ x_XD
    parts_X = x_XD @ direction_D
    # Tokens that are not finite fail here too: the comparison has its own words for them.
    return direction_D if bool((parts_X >= _LEAST).all()) else None


def _spread(num_experts: int, top_k: int, generator: torch.Generator) -> Tensor:
    """Scores (E): of those that act between 1 and 2, of the others between -2 and -1."""
    acting = torch.linspace(1, 2, top_k, dtype=torch.float64)
    others = torch.linspace(-2, -1, num_experts - top_k, dtype=torch.float64)
    order_E = torch.randperm(num_experts, generator=generator)
    return torch.cat([others, acting])[order_E]
