"""Single changes of a genome, before repair; None where one does not apply to this genome.

An operator knows blocks and what they share: a source follows its block, and in a periodic space it
is the pattern that changes.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from archloop.space.config import BLOCK, STACK
from archloop.space.genome import CHANNEL, BlockGenes, Genome, Halves, MixerGenes, Slot
from archloop.space.prior import (
    pick,
    random_channel,
    random_mixer,
    with_sharing,
)
from archloop.space.space import Space

T = TypeVar("T")
Operator = Callable[[Space, Genome, np.random.Generator], Genome | None]


def change_mixer(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another mixer in one place of one block, with random genes."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    if not block.mixers:
        return None
    slot = int(rng.integers(len(block.mixers)))
    others = [name for name in space.mixers if name not in {m.name for m in block.mixers}]
    if not others:
        return None
    return genome.with_block(
        index, block.with_part(slot, random_mixer(space, pick(others, rng), rng))
    )


def replace_family(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Every block of one family takes another, most often one that the stack has already.

    Block by block, the same change would pass through stacks that have both families. Those are
    worse than the stacks at either end, so a search would hardly get across.
    """
    have = sorted({mixer.name for block in genome.blocks for mixer in block.mixers})
    if not have:
        return None
    old = pick(have, rng)
    inside, others = [n for n in have if n != old], [n for n in space.mixers if n != old]
    if not others:
        return None
    new = pick(inside if inside and rng.random() < INSIDE_CHANCE else others, rng)
    blocks = []
    for block in genome.blocks:
        for slot, mixer in enumerate(block.mixers):
            if mixer.name == old:
                block = block.with_part(slot, random_mixer(space, new, rng))
        blocks.append(block)
    return genome.replace(blocks=tuple(blocks))


INSIDE_CHANCE = 0.6
"""Probability that a family gives way to one that the stack has already."""


def change_channel_mixer(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another channel mixer in one block, with random genes."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    if block.channel_mixer is None:
        return None
    name = other(space.channel_mixers, block.channel_mixer.name, rng)
    if name is None:
        return None
    return genome.with_block(index, block.with_part(CHANNEL, random_channel(space, name, rng)))


def change_gene(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another value of one gene that acts on one block, in the gene's whole scope."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    places: list[tuple[str, Slot | None]] = [(m.name, i) for i, m in enumerate(block.mixers)]
    if block.channel_mixer is not None:
        places.append((block.channel_mixer.name, CHANNEL))
    places += [(BLOCK, None), (STACK, None)]
    choices = [
        (name, gene, slot)
        for name, slot in places
        for gene in space.families[name].genes
        if not space.is_free(name, gene)
    ]
    if not choices:
        return None
    name, gene, slot = pick(choices, rng)
    family = space.families[name]
    part = None if slot is None else block.part(slot)
    own = block.genes if part is None else part.genes
    value = other(family.genes[gene], space.values(genome, name, own)[gene], rng)
    if family.scopes[gene] == "global":
        return genome.replace(global_genes={**genome.global_genes, gene: value})
    if family.scopes[gene] == "family":
        genes = {**genome.family_genes[name], gene: value}
        return genome.replace(family_genes={**genome.family_genes, name: genes})
    changes = {"genes": {**own, gene: value}}
    if slot is None or part is None:
        return genome.with_block(index, block.model_copy(update=changes))
    return genome.with_block(index, block.with_part(slot, part.model_copy(update=changes)))


def change_halves(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One block gains or loses its mixers or its channel mixer."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    halves: Halves | None = other(space.halves, block.halves, rng)
    if halves is None:
        return None
    mixers, channel = block.mixers, block.channel_mixer
    if halves == "channel_mixer":
        mixers = ()
    elif not mixers:
        count = pick(space.config.structure.num_mixers, rng)
        mixers = tuple(random_mixer(space, pick(space.mixers, rng), rng) for _ in range(count))
    if halves == "mixers":
        channel = None
    elif channel is None:
        channel = random_channel(space, pick(space.channel_mixers, rng), rng)
    changes = {"mixers": mixers, "channel_mixer": channel}
    return genome.with_block(index, block.model_copy(update=changes))


def change_num_mixers(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One block gains a mixer beside its others, or loses one, up or down to the next number."""
    index = _cell(genome, rng)
    block = genome.blocks[index]
    if not block.mixers:
        return None
    count = other(space.config.structure.num_mixers, len(block.mixers), rng)
    if count is None:
        return None
    mixers: list[MixerGenes] = list(block.mixers)
    while len(mixers) > count:
        mixers.pop(int(rng.integers(len(mixers))))
    while len(mixers) < count:
        new = [name for name in space.mixers if name not in {m.name for m in mixers}]
        mixers.append(random_mixer(space, pick(new or space.mixers, rng), rng))
    return genome.with_block(index, block.model_copy(update={"mixers": tuple(mixers)}))


def swap_blocks(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Two blocks change places."""
    if genome.num_cells < 2:
        return None
    i, j = (int(k) for k in rng.choice(genome.num_cells, size=2, replace=False))
    order = list(range(len(genome.blocks)))
    order[i], order[j] = j, i
    return _reordered(genome, order)


def insert_blocks(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Copies of random blocks beside them, up to the next allowed depth."""
    deeper = [depth for depth in space.config.num_blocks if depth > len(genome.blocks)]
    if not deeper:
        return None
    order: list[int] = list(range(len(genome.blocks)))
    while len(order) < deeper[0]:
        at = int(rng.integers(len(order)))
        order.insert(at, order[at])
    return _reordered(genome, order)


def delete_blocks(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Random blocks leave, down to the next allowed depth."""
    shallower = [depth for depth in space.config.num_blocks if depth < len(genome.blocks)]
    if not shallower:
        return None
    depth = shallower[-1]
    keep = rng.choice(len(genome.blocks), size=depth, replace=False)
    child = _reordered(genome, sorted(int(i) for i in keep))
    # A pattern that is longer than what is left is all of it.
    return child if child.period is None else child.replace(period=min(child.period, depth))


def toggle_sharing(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One block starts or stops sharing."""
    index = int(rng.integers(len(genome.blocks)))
    block = genome.blocks[index]
    if any(part is not None and part.source is not None for part in map(block.part, block.slots)):
        return genome.with_block(index, block.without_sharing())
    return with_sharing(space, genome, index, rng)


def share_block(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """One block becomes an earlier one once more: all its weights are that block's."""
    index = int(rng.integers(len(genome.blocks)))
    lenders = [
        i
        for i, block in enumerate(genome.blocks[:index])
        if block == block.without_sharing() and space.alike(block, genome.blocks[index])
    ]
    if not lenders:
        return None
    lender = pick(lenders, rng)
    block = genome.blocks[lender]
    for slot in block.slots:
        part = block.part(slot)
        assert part is not None
        block = block.with_part(slot, part.sharing("weights_from", lender))
    return genome.with_block(index, block)


def change_period(space: Space, genome: Genome, rng: np.random.Generator) -> Genome | None:
    """Another period: the pattern is cut short, or takes in the blocks that follow it."""
    if genome.period is None:
        return None
    shortest, longest = space.config.interleaving.period
    periods = list(range(shortest, min(longest, len(genome.blocks)) + 1))
    period = other(periods, genome.period, rng)
    return None if period is None else genome.replace(period=period)


def applicable(space: Space) -> tuple[Operator, ...]:
    """Operators that apply to some genome of a space."""
    config, sharing = space.config, space.config.sharing
    searched = any(
        not space.is_free(family.name, gene)
        for family in space.families.values()
        for gene in family.genes
    )
    is_open: dict[Operator, bool] = {
        change_mixer: len(space.mixers) > 1,
        replace_family: len(space.mixers) > 1,
        change_channel_mixer: len(space.channel_mixers) > 1,
        change_gene: searched,
        change_halves: len(set(space.halves)) > 1,
        change_num_mixers: len(set(config.structure.num_mixers)) > 1,
        swap_blocks: config.num_blocks[-1] > 1,
        insert_blocks: len(config.num_blocks) > 1,
        delete_blocks: len(config.num_blocks) > 1,
        toggle_sharing: sharing.weights or sharing.state or sharing.channel_weights,
        share_block: sharing.weights and sharing.channel_weights,
        change_period: config.interleaving.rule == "periodic",
    }
    return tuple(operator for operator, applies in is_open.items() if applies)


def other(values: Sequence[T], value: T, rng: np.random.Generator) -> T | None:
    """A random value other than this one."""
    others = [v for v in values if v != value]
    return pick(others, rng) if others else None


# --- inside -------------------------------------------------------------------------------------


def _cell(genome: Genome, rng: np.random.Generator) -> int:
    """A random block; of the pattern, where there is one."""
    return int(rng.integers(genome.num_cells))


def _reordered(genome: Genome, order: list[int]) -> Genome:
    """The blocks of these old indices, in this order; sharing follows its source.

    A source that comes later now, or not at all, is left for repair to exchange.
    """
    blocks: list[BlockGenes] = []
    for old in order:
        block = genome.blocks[old]
        for slot in block.slots:
            part = block.part(slot)
            assert part is not None
            if part.source is not None:
                is_state = isinstance(part, MixerGenes) and part.state_from is not None
                source = order.index(part.source) if part.source in order else -1
                moved = part.sharing("state_from" if is_state else "weights_from", source)
                block = block.with_part(slot, moved)
        blocks.append(block)
    return genome.replace(blocks=tuple(blocks))
