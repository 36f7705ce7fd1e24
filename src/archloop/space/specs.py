"""The two specs of a genome: one that is profiled and shipped, and the proxy that is trained."""

from archloop.space.budget import as_trained
from archloop.space.encoding import encode
from archloop.space.families import Scale
from archloop.space.genome import Genome
from archloop.space.space import Space
from archloop.stack.spec import StackSpec


def to_spec(space: Space, genome: Genome, scale: Scale, vocab_size: int | None = None) -> StackSpec:
    """The spec of a genome at a scale.

    Args:
        space: the genome is of this one.
        genome: repaired (`repair.repair`).
        scale: which width; also which vocabulary unless `vocab_size` is given.
        vocab_size: of the tokenizer at hand.

    Raises:
        ValueError: neither the recipe nor the caller says the proxy vocabulary.
    """
    config = space.config
    if vocab_size is None:
        vocab_size = (config.ship if scale == "ship" else config.proxy).vocab_size
    if vocab_size is None:
        raise ValueError("the proxy vocabulary is not known; give vocab_size")
    if scale == "proxy":
        genome = as_trained(space, genome)
    return encode(space, genome, scale, vocab_size)
