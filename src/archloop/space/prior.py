"""What a random genome is, before repair: two priors.

`uniform` draws every block's mixer from proportions over all families, so that nearly every stack
is a mixture of many of them. `sparse` draws the set of families first and then the proportions:
published hybrids mix two or three, and where costs and benefits add up over blocks the best stacks
do too, as the corners of a linear programme.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from archloop.space.config import BLOCK
from archloop.space.genome import BlockGenes, ChannelGenes, Genes, Genome, MixerGenes
from archloop.space.repair import sources, valid_blocks
from archloop.space.space import Space

T = TypeVar("T")
Prior = Callable[[Space, np.random.Generator], Genome]
SHARING_CHANCE = 0.15
"""That a block of a random genome shares, where it can."""
NUM_FAMILIES = {1: 0.15, 2: 0.5, 3: 0.35}
"""How likely a sparse genome has so many families of mixers."""


def uniform(space: Space, rng: np.random.Generator) -> Genome:
    """Proportions of all families first, so that pure and mixed stacks both occur."""
    return _drawn(space, rng, lambda names: rng.dirichlet(np.ones(len(names))))


def sparse(space: Space, rng: np.random.Generator) -> Genome:
    """One to three families of mixers, one of channel mixers; then proportions of those."""
    return _drawn(space, rng, lambda names: _few(names, rng))


def with_sharing(space: Space, genome: Genome, index: int, rng: np.random.Generator) -> Genome:
    """The genome with one part of a block that shares from a random earlier one, if any fits."""
    block = genome.blocks[index]
    earlier = list(genome.blocks[:index])
    choices = []
    for slot in block.slots:
        part = block.part(slot)
        assert part is not None
        part = part.sharing(None, None)
        fields, allowed = space.sharing_fields(slot, part), sources(space, earlier, slot, part)
        if fields and allowed:
            choices.append((slot, part, fields, allowed))
    if not choices:
        return genome
    slot, part, fields, allowed = choices[pick_index(choices, rng)]
    field, source = pick(fields, rng), pick(allowed, rng)
    return genome.with_block(index, block.with_part(slot, part.sharing(field, source)))


def random_genes(space: Space, name: str, rng: np.random.Generator) -> Genes:
    """A random value of each block-scoped gene of a family."""
    family = space.families[name]
    return {gene: pick(family.genes[gene], rng) for gene in family.scoped("block")}


def random_mixer(space: Space, name: str, rng: np.random.Generator) -> MixerGenes:
    """A mixer of a family with random genes."""
    return MixerGenes(name=name, genes=random_genes(space, name, rng))


def random_channel(space: Space, name: str, rng: np.random.Generator) -> ChannelGenes:
    """A channel mixer of a family, likewise."""
    return ChannelGenes(name=name, genes=random_genes(space, name, rng))


def pick(values: Sequence[T], rng: np.random.Generator) -> T:
    """One of the values, as itself rather than as a NumPy scalar."""
    return values[pick_index(values, rng)]


def pick_index(values: Sequence[object], rng: np.random.Generator) -> int:
    """A random place in a sequence; nothing is drawn where there is one only."""
    return int(rng.integers(len(values)))


# --- inside -------------------------------------------------------------------------------------

Shares = Callable[[list[str]], NDArray[np.float64]]


def _drawn(space: Space, rng: np.random.Generator, shares: Shares) -> Genome:
    limits = space.config.interleaving
    depth = pick(space.config.num_blocks, rng)
    period = None
    if limits.rule == "periodic":
        period = int(rng.integers(limits.period[0], min(limits.period[1], depth) + 1))
    mixer_shares = shares(space.mixers)
    channel_shares = shares(space.channel_mixers) if space.channel_mixers else np.empty(0)
    genome = Genome(
        blocks=tuple(_block(space, rng, mixer_shares, channel_shares) for _ in range(depth)),
        global_genes={g: pick(v, rng) for g, v in space.global_genes.items()},
        family_genes={
            name: {gene: pick(v, rng) for gene, v in genes.items()}
            for name, genes in space.family_genes.items()
        },
        period=period,
    )
    genome = valid_blocks(space, genome)
    for index in range(depth):
        if rng.random() < SHARING_CHANCE:
            genome = with_sharing(space, genome, index, rng)
    return genome


def _block(
    space: Space,
    rng: np.random.Generator,
    mixer_shares: NDArray[np.float64],
    channel_shares: NDArray[np.float64],
) -> BlockGenes:
    halves = pick(space.halves, rng)
    names, channel = [], None
    if halves != "channel_mixer":
        names = _mixers(space, rng, mixer_shares)
    if halves != "mixers":
        channel = space.channel_mixers[int(rng.choice(len(channel_shares), p=channel_shares))]
    return BlockGenes(
        mixers=tuple(random_mixer(space, name, rng) for name in names),
        channel_mixer=None if channel is None else random_channel(space, channel, rng),
        genes=random_genes(space, BLOCK, rng),
    )


def _mixers(space: Space, rng: np.random.Generator, shares: NDArray[np.float64]) -> list[str]:
    """Names of the mixers of a block, of different families as far as there are as many."""
    names: list[str] = []
    left = shares.copy()
    for _ in range(pick(space.config.structure.num_mixers, rng)):
        if not left.any():
            left = shares.copy()
        index = int(rng.choice(len(left), p=left / left.sum() if names else left))
        names.append(space.mixers[index])
        left[index] = 0.0
    return names


def _few(names: list[str], rng: np.random.Generator) -> NDArray[np.float64]:
    """Shares of all names, of which all but a few are 0."""
    counts = [count for count in NUM_FAMILIES if count <= len(names)]
    chances = np.array([NUM_FAMILIES[count] for count in counts])
    count = counts[int(rng.choice(len(counts), p=chances / chances.sum()))]
    shares = np.zeros(len(names))
    shares[rng.choice(len(names), size=count, replace=False)] = rng.dirichlet(np.ones(count))
    return shares
