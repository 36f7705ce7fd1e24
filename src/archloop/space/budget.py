"""The parameter budget: one gene of a channel mixer gives way until a stack has its size.

Free blocks take one grid value or the next higher one, spread evenly over the depth, so that equal
blocks stay equal and what is exported for one serves another. The same is done at either width.
"""

from archloop.errors import UserError
from archloop.space.encoding import encode
from archloop.space.families import Scale
from archloop.space.genome import Genome
from archloop.space.space import FreeGene, Space


class OutOfReachError(UserError):
    """No setting of the free gene brings a genome to the parameter budget.

    Attributes:
        genome: with every other rule kept.
        distance: from the budget at the nearest, in parameters.
    """

    def __init__(self, message: str, genome: Genome, distance: int) -> None:
        super().__init__(message)
        self.genome, self.distance = genome, distance


def on_budget(space: Space, genome: Genome) -> Genome:
    """The genome with its free genes set so that it meets the budget at ship width.

    Raises:
        OutOfReachError: the nearest total is outside the tolerance.
    """
    budget = space.config.budget
    if budget is None:
        return genome
    genome, total = _nearest(space, genome, "ship", budget.num_params)
    away = abs(total - budget.num_params)
    if away > budget.tolerance * budget.num_params:
        raise OutOfReachError(
            f"{'-'.join(genome.layout)} comes to {total:,} parameters at the nearest, "
            f"the budget is {budget.num_params:,} within {budget.tolerance:.1%}",
            genome,
            away,
        )
    return genome


def as_trained(space: Space, genome: Genome) -> Genome:
    """The genome with its free genes set for proxy width, where the recipe asks for it.

    The budget at proxy width leaves embeddings out, since vocabularies differ. Where no setting
    meets it, the nearest is taken: `cost.num_params` of the proxy spec says what it came to.
    """
    budget = space.config.budget
    if budget is None or not budget.trained or space.free is None:
        return genome
    return _nearest(space, genome, "proxy", trained_target(space))[0]


def trained_target(space: Space) -> int:
    """Parameters that a proxy should have, embeddings aside."""
    ship, budget = space.config.ship, space.config.budget
    assert budget is not None
    embeddings = ship.vocab_size * ship.d_model * (1 if ship.tie_embeddings else 2)
    ratio = space.config.proxy.d_model / ship.d_model
    return max(0, round((budget.num_params - embeddings) * ratio**2))


def _nearest(space: Space, genome: Genome, scale: Scale, target: int) -> tuple[Genome, int]:
    """The nearest genome to a target, and what it comes to."""
    free, budget = space.free, space.config.budget
    users = _with_family(genome, free)
    owners = [i for i in users if not _lent(genome, i)]
    genome = _with_free(space, genome, dict.fromkeys(owners, 0))
    total = _num_params(space, genome, scale)
    if free is None or not owners:
        return genome, total
    found = [_sizes(space, genome, owners[0], scale, value) for value in range(len(free.grid))]
    num_lent = len(users) - len(owners)
    # Where weights are lent, each owner stands for its share of what their borrowers keep.
    sizes = [own + kept * num_lent // len(owners) for own, kept in found]
    step, num_up = _step(sizes, len(owners), target - total)
    if budget is not None and budget.uniform:
        step, num_up = step + (2 * num_up > len(owners)), 0
    genome = _with_free(space, genome, _spread(owners, step, num_up))
    if num_lent and found[-1][1]:
        # Owners may have more borrowers than others.
        return genome, _num_params(space, genome, scale)
    total += len(owners) * (sizes[step] - sizes[0])
    total += num_up * (sizes[min(step + 1, len(sizes) - 1)] - sizes[step])
    return genome, total


def _num_params(space: Space, genome: Genome, scale: Scale) -> int:
    from archloop.stack import cost  # imports torch, which reading a space must not

    ship = scale == "ship"
    spec = encode(space, genome, scale, space.config.ship.vocab_size if ship else 1)
    return cost.num_params(spec) - (0 if ship else cost.num_embedding_params(spec))


def _with_family(genome: Genome, free: FreeGene | None) -> list[int]:
    """Blocks that have the free gene."""
    return [
        index
        for index, block in enumerate(genome.blocks)
        if free is not None
        and block.channel_mixer is not None
        and block.channel_mixer.name == free.family
    ]


def _lent(genome: Genome, index: int) -> bool:
    """Whether a block's channel mixer is an earlier block's."""
    channel = genome.blocks[index].channel_mixer
    return channel is not None and channel.source is not None


def _step(sizes: list[int], num_free: int, need: int) -> tuple[int, int]:
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


def _sizes(space: Space, genome: Genome, index: int, scale: Scale, value: int) -> tuple[int, int]:
    """Parameters of the free family's channel mixer at a grid value, and how many of them are a
    block's own where another lends it the others.
    """
    free, channel = space.free, genome.blocks[index].channel_mixer
    assert free is not None
    assert channel is not None
    # No other gene of this family varies by block (see `Space`), so one stands for all.
    values = {**space.values(genome, free.family, channel.genes), free.gene: free.grid[value]}
    width = space.config.ship.d_model if scale == "ship" else space.config.proxy.d_model
    config = space.families[free.family].config(values, scale)
    return config.num_params(width), config.num_unshared_params(width)


def _with_free(space: Space, genome: Genome, grid_index: dict[int, int]) -> Genome:
    """The genome with the free gene of some blocks set, by index into the grid.

    A block with an earlier block's channel mixer follows it.
    """
    free = space.free
    if free is None:
        return genome
    blocks = list(genome.blocks)
    for index in _with_family(genome, free):
        channel = blocks[index].channel_mixer
        assert channel is not None
        if channel.source is not None:
            lender = blocks[channel.source].channel_mixer
            assert lender is not None
            value = lender.genes[free.gene]
        elif index in grid_index:
            value = free.grid[grid_index[index]]
        else:
            continue
        genes = {**channel.genes, free.gene: value}
        blocks[index] = blocks[index].with_part(
            "channel", channel.model_copy(update={"genes": genes})
        )
    return genome.replace(blocks=tuple(blocks))
