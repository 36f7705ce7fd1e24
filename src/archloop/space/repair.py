"""Repair: the nearest genome that keeps the rules of its space.

Order matters: blocks first (period, enough global mixers), then sharing, which needs equal blocks,
then the parameter budget, which needs to know what is shared. Everything here is deterministic.
"""

from typing import TYPE_CHECKING

from archloop.errors import UserError
from archloop.space.genome import BlockGenes, Genome

if TYPE_CHECKING:
    from archloop.space.space import Space


class OutOfReachError(UserError):
    """No setting of the free gene brings a genome to the parameter budget.

    Attributes:
        genome: with every other rule kept.
        distance: from the budget at the nearest, in parameters.
    """

    def __init__(self, message: str, genome: Genome, distance: int) -> None:
        super().__init__(message)
        self.genome, self.distance = genome, distance


def repaired(space: "Space", genome: Genome) -> Genome:
    """The genome with every rule of the space kept; a valid one is returned unchanged.

    Raises:
        OutOfReachError: the parameter budget cannot be met with these mixers and genes.
    """
    genome = enough_global(space, periodic(space, genome))
    return on_budget(space, valid_sharing(space, genome))


def periodic(space: "Space", genome: Genome) -> Genome:
    """Blocks after the first period are like the blocks one period earlier, sharing aside."""
    if genome.period is None:
        return genome
    free = space.free_gene
    blocks = []
    for index, block in enumerate(genome.blocks):
        model = genome.blocks[index % genome.period]
        channel_genes = dict(model.channel_genes)
        if free is not None and free[0] == model.channel_mixer == block.channel_mixer:
            channel_genes[free[1]] = block.channel_genes[free[1]]
        changes = {
            "mixer": model.mixer,
            "genes": model.genes,
            "channel_mixer": model.channel_mixer,
            "channel_genes": channel_genes,
        }
        blocks.append(block.model_copy(update=changes))
    return genome.replace(blocks=tuple(blocks))


def enough_global(space: "Space", genome: Genome) -> Genome:
    """At least `min_global` blocks with a global mixer, added evenly over the depth if need be."""
    need = space.config.interleaving.min_global
    blocks = list(genome.blocks)
    while sum(space.families[block.mixer].is_global for block in blocks) < need:
        num_cells = genome.period or len(blocks)
        local = [i for i in range(num_cells) if not space.families[blocks[i].mixer].is_global]
        index = local[len(local) // 2]
        name = space.global_mixers[0]
        for i in range(index, len(blocks), num_cells):
            changes = {"mixer": name, "genes": space.first_genes(name)}
            blocks[i] = blocks[i].model_copy(update=changes)
    return genome.replace(blocks=tuple(blocks))


def valid_sharing(space: "Space", genome: Genome) -> Genome:
    """Each source is an earlier, unshared block of the same mixer and settings.

    A source that is not so any more is exchanged for the nearest block below that is; if there is
    none, the block stops sharing.
    """
    blocks: list[BlockGenes] = []
    for block in genome.blocks:
        if block.source is None:
            blocks.append(block)
            continue
        field = "weights_from" if block.state_from is None else "state_from"
        source = None
        if space.may_share(block.mixer, field):
            allowed = sources(blocks, block)
            source = block.source if block.source in allowed else max(allowed, default=None)
        blocks.append(block.unshared().model_copy(update={field: source}))
    return genome.replace(blocks=tuple(blocks))


def sources(earlier: list[BlockGenes], block: BlockGenes) -> list[int]:
    """Indices of the earlier blocks that this one could share from."""
    kind = (block.mixer, block.genes)
    return [
        index
        for index, other in enumerate(earlier)
        if other.source is None and (other.mixer, other.genes) == kind
    ]


def on_budget(space: "Space", genome: Genome) -> Genome:
    """Meet the parameter budget at ship scale by the free gene, on at most two adjacent values.

    Raises:
        OutOfReachError: the nearest total is outside the tolerance.
    """
    from archloop.stack import cost  # imports torch, which reading a space must not

    budget, grid = space.config.budget, space.free_grid
    if budget is None:
        return genome
    family = space.free_gene[0] if space.free_gene else None
    indices = [i for i, block in enumerate(genome.blocks) if block.channel_mixer == family]
    genome = _with_free(space, genome, dict.fromkeys(indices, 0))
    base = cost.num_params(space.to_spec(genome, "ship"))
    step, num_up = 0, 0
    if indices:
        sizes = [_free_size(space, genome, indices, value) for value in range(len(grid))]
        step, num_up = _nearest(sizes, len(indices), budget.num_params - base)
        base += len(indices) * (sizes[step] - sizes[0])
        base += num_up * (sizes[min(step + 1, len(grid) - 1)] - sizes[step])
    if abs(base - budget.num_params) > budget.tolerance * budget.num_params:
        raise OutOfReachError(
            f"{'-'.join(genome.layout)} comes to {base:,} parameters at the nearest, "
            f"the budget is {budget.num_params:,} within {budget.tolerance:.1%}",
            genome,
            abs(base - budget.num_params),
        )
    return _with_free(space, genome, _spread(indices, step, num_up))


def _nearest(sizes: list[int], num_free: int, need: int) -> tuple[int, int]:
    """Grid index i and how many blocks take i+1, so that the total is nearest to the need.

    `sizes` ascend; `need` counts from all blocks at index 0.
    """
    best = (abs(need), 0, 0)
    for i in range(len(sizes) - 1):
        delta = sizes[i + 1] - sizes[i]
        left = need - num_free * (sizes[i] - sizes[0])
        num_up = min(max(round(left / delta), 0), num_free)
        best = min(best, (abs(left - num_up * delta), i, num_up))
    return best[1], best[2]


def _spread(indices: list[int], step: int, num_up: int) -> dict[int, int]:
    """Grid index by block: `num_up` of them, evenly over the depth, one higher."""
    count = len(indices)
    return {
        index: step + ((j + 1) * num_up // count - j * num_up // count)
        for j, index in enumerate(indices)
    }


def _free_size(space: "Space", genome: Genome, indices: list[int], value: int) -> int:
    """Parameters of the free family's channel mixer at a grid value."""
    assert space.free_gene is not None
    name, gene = space.free_gene
    # No other gene of this family varies by block (see `Space`), so one stands for all.
    values = {
        **space.values(genome, name, genome.blocks[indices[0]].channel_genes),
        gene: space.free_grid[value],
    }
    count: int = space.families[name].config(values).num_params(space.config.ship.d_model)
    return count


def _with_free(space: "Space", genome: Genome, grid_index: dict[int, int]) -> Genome:
    """The genome with the free gene of some blocks set, by index into the grid."""
    if not grid_index:
        return genome
    assert space.free_gene is not None
    gene = space.free_gene[1]
    blocks = list(genome.blocks)
    for index, at in grid_index.items():
        block = blocks[index]
        channel_genes = {**block.channel_genes, gene: space.free_grid[at]}
        blocks[index] = block.model_copy(update={"channel_genes": channel_genes})
    return genome.replace(blocks=tuple(blocks))
