"""Stacks that formats can say: what a space is held to by `space.exportable_to`.

Whether a format can say a spec is the format's own matter, and lies above the space: so proposals
that it cannot say are drawn again, and a space in which it hardly can say any is refused at once.
"""

from collections.abc import Sequence

import numpy as np

from archloop.checkpoints import families
from archloop.checkpoints.layouts.base import UnsayableError
from archloop.errors import UserError
from archloop.runtimes.gguf import file as gguf_file
from archloop.search.base import Strategy
from archloop.space.genome import Genome
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.space.variation import sample
from archloop.stack.spec import StackSpec

NUM_DRAWS = 60
"""Random stacks of which a format must be able to say one."""


def obstacle(spec: StackSpec, formats: Sequence[str]) -> str | None:
    """Why one of the formats cannot say a spec; None if all can."""
    for name in formats:
        try:
            families.saying(spec)
        except UnsayableError as error:
            return f"{name}: {error}"
        if name == "gguf" and (reason := gguf_file.unsupported(spec)) is not None:
            return f"{name}: {reason}"
    return None


def hold(strategy: Strategy, space: Space) -> None:
    """Have a strategy propose nothing that the space's formats cannot say.

    Raises:
        UserError: they cannot say a layout that is to be tried first, or hardly any of the space.
    """
    formats = space.config.exportable_to
    if not formats:
        return

    def told(genome: Genome) -> str | None:
        return obstacle(to_spec(space, genome, "ship"), formats)

    for index, genome in enumerate(strategy.initial):
        if (reason := told(genome)) is not None:
            raise UserError(f"initial[{index}] is not of space.exportable_to: {reason}")
    rng = np.random.default_rng(0)
    reasons: list[str] = []
    for _ in range(NUM_DRAWS):
        reason = told(sample(space, rng))
        if reason is None:
            break
        reasons.append(reason)
    else:
        raise UserError(
            f"space.exportable_to={list(formats)}: none of {NUM_DRAWS} random stacks can be said, "
            f"the first because {reasons[0]}; leave such mixers or values out, or give "
            "space.budget uniform: true and a wider tolerance where widths differ by block"
        )
    strategy.allows = lambda genome: told(genome) is None
