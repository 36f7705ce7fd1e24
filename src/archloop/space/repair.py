"""Repair: the nearest genome that keeps the rules of its space.

In this order, since each needs what comes before it:

1. blocks: the period, the halves and numbers of mixers that the space allows, enough global mixers;
2. sharing, which needs equal blocks;
3. the parameter budget, which needs to know what is shared.

Everything here is deterministic.
"""

from itertools import cycle, islice

from archloop.space.budget import on_budget
from archloop.space.checking import check
from archloop.space.genome import BlockGenes, ChannelGenes, Genome, MixerGenes, Part, Slot
from archloop.space.space import Space


def repair(space: Space, genome: Genome) -> Genome:
    """The genome with every rule kept; one that keeps them is returned equal.

    Raises:
        OutOfReachError: no setting of the free gene meets the parameter budget.
        UserError: the genome has mixers, genes or values that this space does not.
    """
    check(space, genome)
    return mend(space, genome)


def mend(space: Space, genome: Genome) -> Genome:
    """As `repair`, of a genome whose names and values are known to be the space's.

    Raises:
        OutOfReachError: as `repair`.
    """
    return on_budget(space, valid_sharing(space, valid_blocks(space, genome)))


def valid_blocks(space: Space, genome: Genome) -> Genome:
    """Blocks in order: parallel mixers as the recipe lists them, the period, enough globals."""
    blocks = tuple(_in_order(space, block) for block in genome.blocks)
    return enough_global(space, periodic(space, genome.replace(blocks=blocks)))


def periodic(space: Space, genome: Genome) -> Genome:
    """Blocks after the first period are like the blocks one period earlier, sharing aside."""
    if genome.period is None:
        return genome
    blocks = []
    for index, block in enumerate(genome.blocks):
        model = genome.blocks[index % genome.period]
        blocks.append(block if space.alike(block, model) else _like(space, block, model))
    return genome.replace(blocks=tuple(blocks))


def enough_global(space: Space, genome: Genome) -> Genome:
    """At least `min_global` blocks with a global mixer, added evenly over the depth if need be."""
    num_cells = min(genome.num_cells, len(genome.blocks))
    copies = [range(cell, len(genome.blocks), num_cells) for cell in range(num_cells)]
    local = [i for i in range(num_cells) if not space.has_global(genome.blocks[i])]
    need = space.config.interleaving.min_global - sum(map(space.has_global, genome.blocks))
    # A block without mixers gets one only where no other is left.
    mixed = [i for i in local if genome.blocks[i].mixers]
    bare = [i for i in local if not genome.blocks[i].mixers]
    for count in range(len(local) + 1):
        chosen = _evenly(mixed, min(count, len(mixed))) + _evenly(bare, count - len(mixed))
        if sum(len(copies[i]) for i in chosen) >= need:
            break
    for index in (copy for i in chosen for copy in copies[i]):
        genome = genome.with_block(index, _made_global(space, genome.blocks[index]))
    return genome


def valid_sharing(space: Space, genome: Genome) -> Genome:
    """Each source is an earlier, unshared block with the same mixer and settings in that place.

    A source that is not so any more is exchanged for the nearest block below that is; if there is
    none, the part stops sharing.
    """
    blocks: list[BlockGenes] = []
    for block in genome.blocks:
        mended = block
        for slot in block.slots:
            part = block.part(slot)
            assert part is not None
            if part.source is not None:
                mended = mended.with_part(slot, _mended(space, blocks, slot, part))
        blocks.append(mended)
    return genome.replace(blocks=tuple(blocks))


def sources(space: Space, earlier: list[BlockGenes], slot: Slot, part: Part) -> list[int]:
    """Indices of the earlier blocks that a part in this place could share from."""
    found = []
    for index, block in enumerate(earlier):
        other = block.part(slot)
        if other is not None and other.source is None and space.same(other, part):
            found.append(index)
    return found


def _evenly(values: list[int], count: int) -> list[int]:
    """So many of the values, the middle of each of as many equal parts; none if less than one."""
    return [values[(2 * part + 1) * len(values) // (2 * count)] for part in range(count)]


def _mended(space: Space, earlier: list[BlockGenes], slot: Slot, part: Part) -> Part:
    field = "weights_from"
    if isinstance(part, MixerGenes) and part.state_from is not None:
        field = "state_from"
    if field not in space.sharing_fields(slot, part):
        return part.sharing(None, None)
    allowed = sources(space, earlier, slot, part)
    source = part.source if part.source in allowed else max(allowed, default=None)
    return part.sharing(field if source is not None else None, source)


def _in_order(space: Space, block: BlockGenes) -> BlockGenes:
    """Parallel mixers commute; one order makes equal stacks equal."""
    if len(block.mixers) < 2:
        return block
    place = space.mixers.index
    mixers = sorted(block.mixers, key=lambda m: (place(m.name), sorted(map(str, m.genes.items()))))
    return block.model_copy(update={"mixers": tuple(mixers)})


def _like(space: Space, block: BlockGenes, model: BlockGenes) -> BlockGenes:
    """The model's parts; what a block shares and the gene that the budget sets are its own."""
    mixers = []
    for slot, mixer in enumerate(model.mixers):
        own = block.mixers[slot] if slot < len(block.mixers) else MixerGenes(name=mixer.name)
        shared = {"weights_from": own.weights_from, "state_from": own.state_from}
        mixers.append(mixer.model_copy(update=shared))
    channel = model.channel_mixer
    if channel is not None:
        channel = _like_channel(space, block.channel_mixer, channel)
    return model.model_copy(update={"mixers": tuple(mixers), "channel_mixer": channel})


def _like_channel(space: Space, own: ChannelGenes | None, model: ChannelGenes) -> ChannelGenes:
    genes, free = dict(model.genes), space.free
    if free is not None and own is not None and free.family == model.name == own.name:
        genes[free.gene] = own.genes[free.gene]
    source = None if own is None else own.weights_from
    return model.model_copy(update={"genes": genes, "weights_from": source})


def _made_global(space: Space, block: BlockGenes) -> BlockGenes:
    """The block with its first mixer exchanged for the recipe's first global one.

    A block without mixers gets as few as the space allows, of as many families as it has.
    """
    name = space.global_mixers[0]
    first, rest = MixerGenes(name=name, genes=space.first_genes(name)), block.mixers[1:]
    if block.mixers:
        old = block.mixers[0]
        shared = {"weights_from": old.weights_from, "state_from": old.state_from}
        first = first.model_copy(update=shared)
    else:
        others = cycle([*(each for each in space.mixers if each != name), name])
        names = islice(others, min(space.config.structure.num_mixers) - 1)
        rest = tuple(MixerGenes(name=each, genes=space.first_genes(each)) for each in names)
    changes: dict[str, object] = {"mixers": (first, *rest)}
    if not block.mixers and "both" not in space.halves:
        changes["channel_mixer"] = None
    return _in_order(space, block.model_copy(update=changes))
