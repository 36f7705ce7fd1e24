"""Trials by design: which stacks tell best what each family contributes.

Every family alone, every pair of families in turns, and all families together, at one depth and
with the first values of all genes: a factorial over families, all else fixed. A stack that the
rules or the parameter budget of the space do not allow is left out.
"""

from itertools import combinations

from archloop.errors import UserError
from archloop.search import plan
from archloop.search.recipe.recipe import Recipe
from archloop.space import seeding
from archloop.space.space import Space

SUFFIX = "-design"
"""After a study's name, the name of the study of its trials by design."""


def by_design(recipe: Recipe) -> Recipe:
    """The recipe of a study of designed stacks alone, all else as in the one that is given.

    Raises:
        UserError: no such stack is of the space.
    """
    layouts = designed(plan.resolve(recipe).space)
    if not layouts:
        raise recipe.error("no stack of one family or two in turns keeps the rules of the space")
    return recipe.varied(
        name=recipe.name + SUFFIX,
        initial=[list(layout) for layout in layouts],
        num_trials=len(layouts),
        specs=[],
        replicates=0,
        max_hours=None,
        until_still=None,
        strategy={"name": "random"},
    )


def designed(space: Space) -> list[tuple[str, ...]]:
    """Layouts of the design that the space allows, the simplest first."""
    depth = max(space.config.num_blocks)
    groups: list[tuple[str, ...]] = [(name,) for name in space.mixers]
    groups += combinations(space.mixers, 2)
    if len(space.mixers) > 2:
        groups.append(tuple(space.mixers))
    found = []
    for group in groups:
        layout = tuple(group[index % len(group)] for index in range(depth))
        try:
            allowed = tuple(seeding.from_layout(space, layout).layout)
        except UserError:
            continue
        # Rules of the space may have changed a block; what came of it is another stack.
        if allowed == layout:
            found.append(layout)
    return found
