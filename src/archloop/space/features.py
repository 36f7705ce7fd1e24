"""A genome as numbers: a few for people, more for a surrogate model.

Quality, latency and memory of a stack depend above all on how much of it each family has, and
where: so a genome is described by shares over the whole depth and over its thirds, and not block
by block, which would take a hundred times as many trials to learn from.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from archloop.space.config import BLOCK, STACK
from archloop.space.genome import BlockGenes, Genes, Genome, Part
from archloop.space.space import Space

NUM_PARTS = 3
"""Parts of the depth in which shares are counted."""


def summary(space: Space, genome: Genome) -> dict[str, int]:
    """A few numbers per genome, the same keys for all: what importance analysis looks at."""
    names = [mixer.name for block in genome.blocks for mixer in block.mixers]
    return {
        "num_blocks": len(genome.blocks),
        **{f"num_{name}": names.count(name) for name in space.mixers},
        "num_sharing": sum(p.source is not None for block in genome.blocks for p in _parts(block)),
    }


def features(space: Space, genome: Genome) -> NDArray[np.float64]:
    """What a surrogate model sees of a genome, each number of order 1.

    Shares of each family over the depth and its thirds; how many blocks read every token and how
    many of those are neighbours; what blocks consist of; mean place of each gene's value among
    those listed, over the blocks that have it.
    """
    blocks, count = genome.blocks, len(genome.blocks)
    row = {name: index for index, name in enumerate([*space.mixers, *space.channel_mixers])}
    has = np.zeros((len(row), count))
    for column, block in enumerate(blocks):
        for part in _parts(block):
            has[row[part.name], column] += 1
    mixers = has[: len(space.mixers)]
    is_global = np.array([space.has_global(block) for block in blocks])
    edges = np.linspace(0, count, NUM_PARTS + 1).round().astype(int)
    shares = [mixers[:, i:j].mean(1) for i, j in itertools.pairwise(edges) if i < j]
    shares += [np.zeros(len(mixers))] * (NUM_PARTS - len(shares))
    sharing = sum(part.source is not None for block in blocks for part in _parts(block))
    whole = [
        np.log1p(is_global.sum()),
        float(is_global.any()),
        (is_global[1:] & is_global[:-1]).sum() / count,
        (mixers.sum(1) > 0).sum() / 4,
        count / space.config.num_blocks[-1],
        (genome.period or 0) / count,
        sharing / count,
    ]
    return np.concatenate([has.mean(1), *shares, whole, list(_places(space, genome))])


def _parts(block: BlockGenes) -> Iterator[Part]:
    yield from block.mixers
    if block.channel_mixer is not None:
        yield block.channel_mixer


def _places(space: Space, genome: Genome) -> Iterator[float]:
    """Each searched gene's value as its place among those listed, 0 to 1; 0.5 if it has none."""
    own: dict[str, list[Genes]] = {STACK: [{}], BLOCK: [block.genes for block in genome.blocks]}
    for block in genome.blocks:
        for part in _parts(block):
            own.setdefault(part.name, []).append(part.genes)
    for family in space.families.values():
        uses = own.get(family.name, [])
        for gene, values in family.genes.items():
            scope = family.scopes[gene]
            if not uses:
                yield 0.5
            elif scope == "block":
                mean = sum(values.index(genes[gene]) for genes in uses) / len(uses)
                yield mean / (len(values) - 1)
            else:
                wide = (
                    genome.global_genes if scope == "global" else genome.family_genes[family.name]
                )
                yield values.index(wide[gene]) / (len(values) - 1)
