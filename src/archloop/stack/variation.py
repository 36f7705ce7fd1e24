"""Mutation and crossover of genomes, aware of blocks, and reading a genome off a spec.

Every operator returns a genome that keeps the rules of its space, or gives way to another one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from archloop.stack.genome import BlockGenes, Genes, Genome
from archloop.stack.repair import OutOfReachError, sources
from archloop.stack.spec import Scalar, StackSpec

if TYPE_CHECKING:
    from archloop.stack.space import Space

T = TypeVar("T")
Operator = Callable[["Space", Genome, np.random.Generator], Genome | None]
NUM_TRIES = 30
"""Changes tried before mutation gives up on a parent and draws a random genome."""


def mutated(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome:
    """A genome that differs by one change: one of `OPERATORS`, drawn uniformly."""
    for _ in range(NUM_TRIES):
        child = OPERATORS[int(rng.integers(len(OPERATORS)))](space, genome, rng)
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


def encoded(space: "Space", spec: StackSpec) -> Genome:
    """See `Space.from_spec`."""
    found: dict[str, tuple[Scalar, str]] = {}
    blocks = []
    for index, block in enumerate(spec.blocks):
        where = f"blocks[{index}]"
        if len(block.mixers) != 1 or block.channel_mixer is None:
            raise ValueError(f"{where}: a genome has one mixer and one channel mixer a block")
        if block.post_norms or block.residual_multiplier != 1.0:
            raise ValueError(f"{where}: post_norms and residual_multiplier are not in any space")
        mixer, channel = block.mixers[0], block.channel_mixer
        blocks.append(
            BlockGenes(
                mixer=mixer.name,
                genes=_read(space, mixer.name, mixer.config, where, found),
                channel_mixer=channel.name,
                channel_genes=_read(space, channel.name, channel.config, where, found),
                weights_from=mixer.weights_from,
                state_from=mixer.state_from,
            )
        )
    return space.placed(blocks, {key: value for key, (value, _) in found.items()})


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
    changes = {"mixer": name, "genes": space.random_genes(name, rng)}
    return _with_block(genome, index, block.unshared().model_copy(update=changes))


def change_channel_mixer(space: "Space", genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another channel mixer in one block, with random genes."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    name = _other(space.channel_mixers, block.channel_mixer, rng)
    if name is None:
        return None
    changes = {"channel_mixer": name, "channel_genes": space.random_genes(name, rng)}
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


# --- inside -------------------------------------------------------------------------------------


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


def _read(
    space: "Space", name: str, given: Genes, where: str, found: dict[str, tuple[Scalar, str]]
) -> Genes:
    """Block-scoped genes of a mixer's settings; the wider ones go to `found`."""
    own: Genes = {}
    for gene, scope, value in _settings(space, name, given, where):
        if scope == "block":
            own[gene] = value
            continue
        key = gene if scope == "global" else f"{name}.{gene}"
        first, first_where = found.setdefault(key, (value, where))
        if first != value:
            raise ValueError(
                f"{where}: {name}.{gene}={value!r} but {first!r} in {first_where}; "
                f"the gene's scope is {scope}"
            )
    return own


def _settings(
    space: "Space", name: str, given: Genes, where: str
) -> Iterator[tuple[str, str, Scalar]]:
    """Searched genes with scope and value; refuses any other setting that differs from ours."""
    family = space.families.get(name)
    if family is None:
        raise ValueError(f"{where}: {name!r} is not in the space")
    first = space.families[name].config({g: v[0] for g, v in family.genes.items()})
    theirs = type(first)(**given)
    for field in type(first).model_fields:
        value = getattr(theirs, field)
        if field in family.genes:
            if space.is_free(name, field):
                value = space.free_grid[0]
            yield field, family.scopes[field], value
        elif value != getattr(first, field):
            raise ValueError(
                f"{where}: {name}.{field}={value!r}; in the space it is {getattr(first, field)!r}"
            )
