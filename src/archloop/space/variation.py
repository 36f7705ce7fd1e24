"""Random genomes, mutation and crossover, aware of blocks and of what they share.

Every operator returns a genome that keeps the rules of its space, or gives way to another one.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from archloop.space import repair
from archloop.space.genome import BlockGenes, Genes, Genome
from archloop.space.repair import OutOfReachError, sources

if TYPE_CHECKING:
    from archloop.space.space import Space

T = TypeVar("T")
Operator = Callable[["Space", Genome, np.random.Generator], Genome | None]
SHARING_CHANCE = 0.15
"""That a block of a random genome shares, where it can."""
NUM_DRAWS = 100
"""Random genomes tried against the parameter budget before one is led towards it."""
NUM_STEPS = 2000
"""Changes tried on the way, after which the budget counts as out of reach."""
NUM_TRIES = 30
"""Changes tried before mutation gives up on a parent and draws a random genome."""


def sampled(space: "Space", rng: np.random.Generator) -> Genome:
    """A random genome that meets the parameter budget.

    Where hardly any layout does, the nearest of many is changed step by step towards it.
    """
    nearest: OutOfReachError | None = None
    for attempt in range(NUM_DRAWS + NUM_STEPS):
        if nearest is None or attempt < NUM_DRAWS:
            candidate: Genome | None = drawn(space, rng)
        else:
            candidate = _operator(rng, RESIZING)(space, nearest.genome, rng)
        if candidate is None:
            continue
        try:
            return space.repair(candidate)
        except OutOfReachError as error:
            if nearest is None or error.distance <= nearest.distance:
                nearest = error
    assert nearest is not None
    raise nearest


def drawn(space: "Space", rng: np.random.Generator) -> Genome:
    """A random genome before repair."""
    limits = space.config.interleaving
    depth = _pick(space.config.num_blocks, rng)
    period = None
    if limits.rule == "periodic":
        period = int(rng.integers(limits.period[0], min(limits.period[1], depth) + 1))
    shares = rng.dirichlet(np.ones(len(space.mixers)))
    channel_shares = rng.dirichlet(np.ones(len(space.channel_mixers)))
    blocks = []
    for _ in range(depth):
        mixer = space.mixers[int(rng.choice(len(space.mixers), p=shares))]
        channel = space.channel_mixers[int(rng.choice(len(space.channel_mixers), p=channel_shares))]
        blocks.append(
            BlockGenes(
                mixer=mixer,
                genes=_random_genes(space, mixer, rng),
                channel_mixer=channel,
                channel_genes=_random_genes(space, channel, rng),
            )
        )
    genome = Genome(
        global_genes={g: _pick(v, rng) for g, v in space.global_genes.items()},
        family_genes={
            name: {gene: _pick(v, rng) for gene, v in genes.items()}
            for name, genes in space.family_genes.items()
        },
        blocks=tuple(blocks),
        period=period,
    )
    genome = repair.enough_global(space, repair.periodic(space, genome))
    for index in range(depth):
        if rng.random() < SHARING_CHANCE:
            genome = with_sharing(space, genome, index, rng)
    return genome


def mutated(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome:
    """A genome that differs by one change: one of `OPERATORS`, drawn uniformly."""
    for _ in range(NUM_TRIES):
        child = _operator(rng, OPERATORS)(space, genome, rng)
        if child is None:
            continue
        try:
            child = space.repair(child)
        except OutOfReachError:
            continue
        if child != genome:
            return child
    return space.sample(rng)


def crossed(space: "Space", a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
    """Blocks of one parent with a stretch of the other's at the same depth; genes from either.

    Sources of sharing keep their depth, where the child may hold another block: repair then finds
    the nearest block that fits.
    """
    if rng.random() < 0.5:
        a, b = b, a
    for _ in range(NUM_TRIES):
        overlap = min(len(a.blocks), len(b.blocks))
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
            return space.repair(child)
        except OutOfReachError:
            continue
    return a


def with_sharing(space: "Space", genome: Genome, index: int, rng: np.random.Generator) -> Genome:
    """The genome with a block that shares from a random earlier one, if there is any that fits."""
    block = genome.blocks[index].unshared()
    fields = [f for f in ("weights_from", "state_from") if space.may_share(block.mixer, f)]
    allowed = sources(list(genome.blocks[:index]), block)
    if not fields or not allowed:
        return genome
    field = fields[int(rng.integers(len(fields)))]
    source = allowed[int(rng.integers(len(allowed)))]
    return _with_block(genome, index, block.model_copy(update={field: source}))


# --- operators: None where an operator does not apply -------------------------------------------


def change_mixer(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another mixer in one block, with random genes."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    name = _other(space.mixers, block.mixer, rng)
    if name is None:
        return None
    changes = {"mixer": name, "genes": _random_genes(space, name, rng)}
    return _with_block(genome, index, block.unshared().model_copy(update=changes))


def change_channel_mixer(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another channel mixer in one block, with random genes."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    name = _other(space.channel_mixers, block.channel_mixer, rng)
    if name is None:
        return None
    changes = {"channel_mixer": name, "channel_genes": _random_genes(space, name, rng)}
    return _with_block(genome, index, block.model_copy(update=changes))


def change_gene(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another value of one gene of one block, in the gene's whole scope."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    choices = [
        (name, gene, field)
        for name, field in ((block.mixer, "genes"), (block.channel_mixer, "channel_genes"))
        for gene in space.families[name].genes
        if not space.is_free(name, gene)
    ]
    if not choices:
        return None
    name, gene, field = choices[int(rng.integers(len(choices)))]
    family = space.families[name]
    own: Genes = getattr(block, field)
    value = _other(family.genes[gene], space.values(genome, name, own)[gene], rng)
    if family.scopes[gene] == "global":
        return genome.replace(global_genes={**genome.global_genes, gene: value})
    if family.scopes[gene] == "family":
        genes = {**genome.family_genes[name], gene: value}
        return genome.replace(family_genes={**genome.family_genes, name: genes})
    return _with_block(genome, index, block.model_copy(update={field: {**own, gene: value}}))


def swap_blocks(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Two blocks change places."""
    count = genome.period or len(genome.blocks)
    if count < 2:
        return None
    i, j = (int(k) for k in rng.choice(count, size=2, replace=False))
    order = list(range(len(genome.blocks)))
    order[i], order[j] = j, i
    return _reordered(genome, order)


def insert_blocks(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Copies of random blocks beside them, up to the next allowed depth."""
    deeper = [depth for depth in space.config.num_blocks if depth > len(genome.blocks)]
    if not deeper:
        return None
    order: list[int] = list(range(len(genome.blocks)))
    while len(order) < deeper[0]:
        at = int(rng.integers(len(order)))
        order.insert(at, order[at])
    return _reordered(genome, order)


def delete_blocks(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Random blocks leave, down to the next allowed depth."""
    shallower = [depth for depth in space.config.num_blocks if depth < len(genome.blocks)]
    if not shallower:
        return None
    keep = rng.choice(len(genome.blocks), size=shallower[-1], replace=False)
    return _reordered(genome, sorted(int(i) for i in keep))


def toggle_sharing(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One block starts or stops sharing."""
    index = int(rng.integers(len(genome.blocks)))
    if genome.blocks[index].source is not None:
        return _with_block(genome, index, genome.blocks[index].unshared())
    return with_sharing(space, genome, index, rng)


def change_period(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another period: the pattern is cut short, or takes in the blocks that follow it."""
    if genome.period is None:
        return None
    shortest, longest = space.config.interleaving.period
    periods = list(range(shortest, min(longest, len(genome.blocks)) + 1))
    period = _other(periods, genome.period, rng)
    return None if period is None else genome.replace(period=period)


OPERATORS: tuple[Operator, ...] = (
    change_mixer,
    change_channel_mixer,
    change_gene,
    swap_blocks,
    insert_blocks,
    delete_blocks,
    toggle_sharing,
    change_period,
)
RESIZING = tuple(operator for operator in OPERATORS if operator is not swap_blocks)
"""Operators that may change the number of parameters."""


# --- inside -------------------------------------------------------------------------------------


def _operator(rng: np.random.Generator, operators: tuple[Operator, ...]) -> Operator:
    return operators[int(rng.integers(len(operators)))]


def _cell(genome: Genome, rng: np.random.Generator) -> int:
    """A random block; of the pattern, where there is one."""
    return int(rng.integers(genome.period or len(genome.blocks)))


def _other(values: Sequence[T], value: T, rng: np.random.Generator) -> T | None:
    """A random value other than this one."""
    others = [v for v in values if v != value]
    return others[int(rng.integers(len(others)))] if others else None


def _either(a: Genes, b: Genes, rng: np.random.Generator) -> Genes:
    """Each gene from one of the two."""
    return {gene: value if rng.random() < 0.5 else b[gene] for gene, value in a.items()}


def _with_block(genome: Genome, index: int, block: BlockGenes) -> Genome:
    blocks = genome.blocks[:index] + (block,) + genome.blocks[index + 1 :]
    return genome.replace(blocks=blocks)


def _reordered(genome: Genome, order: list[int]) -> Genome:
    """The blocks of these old indices, in this order; sharing follows its source.

    A source that comes later now, or not at all, is left for repair to exchange.
    """
    blocks = []
    for old in order:
        block = genome.blocks[old]
        if block.source is not None:
            field = "weights_from" if block.state_from is None else "state_from"
            source = order.index(block.source) if block.source in order else -1
            block = block.model_copy(update={field: source})
        blocks.append(block)
    return genome.replace(blocks=tuple(blocks))


def _pick(values: Sequence[T], rng: np.random.Generator) -> T:
    """One of the values, as itself rather than as a NumPy scalar."""
    return values[int(rng.integers(len(values)))]


def _random_genes(space: "Space", name: str, rng: np.random.Generator) -> Genes:
    """A random value of each block-scoped gene of a family."""
    family = space.families[name]
    return {gene: _pick(family.genes[gene], rng) for gene in family.scoped("block")}
