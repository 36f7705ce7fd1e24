"""Anchor stacks: a stack that lacks a skill, one that has it, and the reference preset.

They are trained before trial 0, each as often as the reference preset. Their scores say on which
scale quality is read (`ranking.anchors`), and their repeated trainings how much trainings differ:
where a stack learns to recall in one training and not in the next, its scores vary ten times more
than those of a stack that never does, so that noise has to be known of several different stacks.
"""

from collections.abc import Sequence
from typing import NamedTuple

from archloop.errors import UserError
from archloop.search.recipe.recipe import REFERENCE, AnchorPair, Recipe
from archloop.space import seeding
from archloop.space.encoding import encode, proxied
from archloop.space.genome import Genome
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.stack import cost, presets
from archloop.stack.spec import StackSpec

DEFAULT = "default"
"""The key of the pair for every score that has no pair of its own."""


class AnchorStacks(NamedTuple):
    """What anchors a study's quality.

    Attributes:
        stacks: at proxy width, by name, without the reference preset.
        default: names of the stack that lacks the skills and of the one that has them.
        pairs: the same for single scores and categories.
    """

    stacks: dict[str, StackSpec]
    default: tuple[str, str]
    pairs: dict[str, tuple[str, str]]

    @property
    def needed(self) -> set[str]:
        """Stacks without which some score has no scale; the others only show noise."""
        return {name for pair in (self.default, *self.pairs.values()) for name in pair}


def resolve(
    recipe: Recipe, space: Space, reference_proxy: StackSpec, vocab_size: int
) -> AnchorStacks:
    """The anchor stacks that a recipe names, or those that its space suggests.

    Raises:
        UserError: a stack is not of the space, or both stacks of a pair are the same.
    """
    given = dict(recipe.anchors)
    if DEFAULT not in given:
        given[DEFAULT] = AnchorPair(lacks=shortest_sighted(space), has=REFERENCE)
    stacks = {REFERENCE: reference_proxy}
    pairs = {}
    for key, pair in given.items():
        names = []
        for role, stack in pair:
            name = _name(space, stack)
            if name not in stacks:
                stacks[name] = _spec(space, stack, vocab_size, f"anchors.{key}.{role}")
            names.append(name)
        lacks, has = names
        if stacks[lacks] == stacks[has]:
            raise UserError(
                f"anchors.{key}: {lacks} and {has} are one stack, so no score can differ between "
                "them; name a stack that lacks the skill (lacks) and one that has it (has)"
            )
        pairs[key] = (lacks, has)
    default = pairs.pop(DEFAULT)
    for mixer in (*space.global_mixers, *space.mixers):
        # The noise between trainings is estimated from at least three stacks.
        if len(stacks) < 3:
            stacks.setdefault(f"all {mixer}", alone(space, mixer, vocab_size))
    del stacks[REFERENCE]
    return AnchorStacks(stacks, default, pairs)


def shortest_sighted(space: Space) -> str:
    """The mixer that sees least far at proxy width; the first one if all see everything."""
    width = space.config.proxy.d_model
    reaches = {name: space.families[name].reach(width) for name in space.mixers}
    limited = {name: reach for name, reach in reaches.items() if reach is not None}
    return min(limited, key=lambda name: limited[name], default=space.mixers[0])


def alone(space: Space, mixer: str, vocab_size: int) -> StackSpec:
    """A stack of one mixer at proxy width and the space's smallest depth.

    It keeps the parameter budget where it can; where it cannot, or a rule of the space forbids such
    a stack, genes have their first values.
    """
    pure = seeding.pure(space, mixer)
    try:
        on_budget: Genome = seeding.from_layout(space, pure.layout)
    except UserError:
        return encode(space, pure, "proxy", vocab_size)
    return to_spec(space, on_budget, "proxy", vocab_size)


def _name(space: Space, stack: str | Sequence[str] | StackSpec) -> str:
    if isinstance(stack, StackSpec):
        return f"spec {stack.digest[:8]}"
    if isinstance(stack, str):
        return f"all {stack}" if stack in space.mixers else stack
    return " ".join(stack)


def _spec(
    space: Space, stack: str | Sequence[str] | StackSpec, vocab_size: int, key: str
) -> StackSpec:
    try:
        if isinstance(stack, StackSpec):
            spec = proxied(space, stack, vocab_size)
        elif not isinstance(stack, str):
            genome = seeding.from_layout(space, stack)
            spec = to_spec(space, genome, "proxy", vocab_size)
        elif stack in space.mixers:
            spec = alone(space, stack, vocab_size)
        else:
            spec = proxied(space, presets.load(stack), vocab_size)
        cost.check(spec)
    except UserError as error:
        what = f"{key}={stack!r}" if isinstance(stack, str) else key
        raise UserError(
            f"{what}: {error}; give {REFERENCE}, a mixer of the space ({', '.join(space.mixers)}), "
            "a layout, a preset or a spec"
        ) from error
    return spec
