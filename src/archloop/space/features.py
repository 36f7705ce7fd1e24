"""A genome as numbers: a few for people, more for a surrogate model."""

from archloop.space.genome import Genome
from archloop.space.space import Space


def summary(space: Space, genome: Genome) -> dict[str, int]:
    """A few numbers per genome, the same keys for all: what importance analysis looks at."""
    names = [mixer.name for block in genome.blocks for mixer in block.mixers]
    parts = [block.part(slot) for block in genome.blocks for slot in block.slots]
    return {
        "num_blocks": len(genome.blocks),
        **{f"num_{name}": names.count(name) for name in space.mixers},
        "num_sharing": sum(part is not None and part.source is not None for part in parts),
    }
