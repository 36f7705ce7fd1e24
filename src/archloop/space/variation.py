"""Random genomes, mutation and crossover: whatever leaves here keeps the rules of its space."""

import numpy as np

from archloop.space import prior
from archloop.space.budget import OutOfReachError
from archloop.space.encoding import identity
from archloop.space.genome import Genes, Genome
from archloop.space.operators import Operator, applicable, swap_blocks
from archloop.space.prior import Prior
from archloop.space.repair import mend
from archloop.space.space import Space

NUM_DRAWS = 100
"""Random genomes tried against the parameter budget before one is led towards it."""
NUM_STEPS = 2000
"""Changes tried on the way, after which the budget counts as out of reach."""
NUM_TRIES = 30
"""Changes tried before mutation gives up on a parent and draws a random genome."""


def sample(space: Space, rng: np.random.Generator, draw: Prior = prior.sparse) -> Genome:
    """A random genome that meets the parameter budget.

    Where hardly any layout does, the nearest of many is changed step by step towards it.

    Args:
        space: to sample.
        rng: source of everything random.
        draw: how likely each genome is (`space.prior`).

    Raises:
        OutOfReachError: no genome near the parameter budget was found.
    """
    nearest: OutOfReachError | None = None
    # Swapping blocks does not change their number of parameters.
    resizing = tuple(operator for operator in applicable(space) if operator is not swap_blocks)
    for attempt in range(NUM_DRAWS + NUM_STEPS):
        if nearest is None or attempt < NUM_DRAWS:
            candidate: Genome | None = draw(space, rng)
        elif not resizing:
            break
        else:
            candidate = _operator(resizing, rng)(space, nearest.genome, rng)
        if candidate is None:
            continue
        try:
            return mend(space, candidate)
        except OutOfReachError as error:
            if nearest is None or error.distance <= nearest.distance:
                nearest = error
    assert nearest is not None
    raise nearest


def mutate(space: Space, genome: Genome, rng: np.random.Generator) -> Genome:
    """A genome of another spec, one structural change away (see `space.operators`).

    Where no change of this one gives another spec that keeps the rules, a random genome.
    """
    operators, before = applicable(space), identity(space, genome)
    for _ in range(NUM_TRIES if operators else 0):
        child = _operator(operators, rng)(space, genome, rng)
        if child is None:
            continue
        try:
            child = mend(space, child)
        except OutOfReachError:
            continue
        if identity(space, child) != before:
            return child
    return sample(space, rng)


def crossover(space: Space, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
    """A child of two genomes by two-point crossover at block boundaries; genes from either.

    The cuts lie within one period where there is one, since the other blocks only repeat it.
    Sources of sharing keep their depth, where the child may hold another block: repair then finds
    the nearest block that fits. Where no child of several differs from both parents, one of them.
    """
    if rng.random() < 0.5:
        a, b = b, a
    parents = {identity(space, a), identity(space, b)}
    for _ in range(NUM_TRIES):
        overlap = min(a.num_cells, b.num_cells)
        first, last = sorted(int(i) for i in rng.choice(overlap + 1, size=2, replace=False))
        child = a.replace(
            blocks=a.blocks[:first] + b.blocks[first:last] + a.blocks[last:],
            global_genes=_either(a.global_genes, b.global_genes, rng),
            family_genes={
                name: _either(genes, b.family_genes[name], rng)
                for name, genes in a.family_genes.items()
            },
        )
        try:
            child = mend(space, child)
        except OutOfReachError:
            continue
        if identity(space, child) not in parents:
            return child
    return a


def _operator(operators: tuple[Operator, ...], rng: np.random.Generator) -> Operator:
    return operators[int(rng.integers(len(operators)))]


def _either(a: Genes, b: Genes, rng: np.random.Generator) -> Genes:
    """Each gene from one of the two."""
    return {gene: value if rng.random() < 0.5 else b[gene] for gene, value in a.items()}
