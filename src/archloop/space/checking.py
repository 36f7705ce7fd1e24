"""What repair cannot mend: names, values, depths and structures from outside a space."""

from archloop import registry
from archloop.errors import UserError
from archloop.space.config import BLOCK
from archloop.space.families import Section
from archloop.space.genome import BlockGenes, Genes, Genome
from archloop.space.space import Space
from archloop.stack.spec import Scalar

WINDOWS_PER_SEQUENCE = 4
"""A sequence must be so many windows long for a window to differ from full attention."""


def check(space: Space, genome: Genome) -> None:
    """Refuse a genome of another space.

    Raises:
        UserError: names the block, gene and value.
    """
    config = space.config
    if len(genome.blocks) not in config.num_blocks:
        raise UserError(f"{len(genome.blocks)} blocks; the space allows {list(config.num_blocks)}")
    shortest, longest = config.interleaving.period
    if (genome.period is not None) != (config.interleaving.rule == "periodic") or not (
        genome.period is None or shortest <= genome.period <= longest
    ):
        raise UserError(
            f"period={genome.period}; the space is {config.interleaving.rule}"
            f"{'' if genome.period is None else f' with periods {shortest} to {longest}'}"
        )
    _check_genes("global_genes", genome.global_genes, space.global_genes)
    for name in sorted(set(genome.family_genes) | set(space.family_genes)):
        given, allowed = genome.family_genes.get(name, {}), space.family_genes.get(name, {})
        _check_genes(f"family_genes.{name}", given, allowed)
    for index, block in enumerate(genome.blocks):
        _check_block(space, f"blocks[{index}]", block)


def check_sequence_length(space: Space, num_tokens: int) -> None:
    """Refuse sequences in which the largest window, at proxy width, is hardly left.

    Raises:
        UserError: the sequences are shorter than 4 windows of the mixer that sees farthest, mixers
            that see everything aside.
    """
    name, seen = farthest(space)
    need = WINDOWS_PER_SEQUENCE * seen
    if num_tokens < need:
        raise UserError(
            f"proxy sequences of {num_tokens} tokens are shorter than {WINDOWS_PER_SEQUENCE} x the "
            f"{seen} tokens that {name} sees; train on at least {need} tokens or give {name} a "
            "smaller window at proxy width"
        )


def farthest(space: Space) -> tuple[str, int]:
    """The mixer that sees farthest at proxy width without seeing everything, and its tokens.

    An empty name and 0 where every mixer of the space sees everything.
    """
    width = space.config.proxy.d_model
    reaches = {name: space.families[name].reach(width) for name in space.mixers}
    seen = {name: reach + 1 for name, reach in reaches.items() if reach is not None}
    return max(seen.items(), key=lambda entry: entry[1], default=("", 0))


def _check_block(space: Space, where: str, block: BlockGenes) -> None:
    structure = space.config.structure
    if not block.slots or block.halves not in structure.halves:
        raise UserError(
            f"{where}: has {block.halves if block.slots else 'nothing'}; "
            f"space.structure.halves are {list(structure.halves)}"
        )
    if block.mixers and len(block.mixers) not in structure.num_mixers:
        raise UserError(
            f"{where}: {len(block.mixers)} mixers; space.structure.num_mixers is "
            f"{list(structure.num_mixers)}"
        )
    for mixer in block.mixers:
        _check_part(space, where, "mixers", mixer.name, mixer.genes)
    if block.channel_mixer is not None:
        channel = block.channel_mixer
        _check_part(space, where, "channel_mixers", channel.name, channel.genes)
    _check_own(space, where, BLOCK, block.genes)


def _check_part(space: Space, where: str, section: Section, name: str, genes: Genes) -> None:
    family = space.families.get(name)
    if family is None or family.section != section:
        known = space.mixers if section == "mixers" else space.channel_mixers
        raise UserError(
            f"{where}: {name!r} is not in space.{section}; {registry.suggest(name, known)}"
        )
    _check_own(space, where, name, genes)


def _check_own(space: Space, where: str, name: str, genes: Genes) -> None:
    family = space.families[name]
    allowed = {gene: family.genes[gene] for gene in family.scoped("block")}
    _check_genes(f"{where}.{name}", genes, allowed)


def _check_genes(where: str, given: Genes, allowed: dict[str, tuple[Scalar, ...]]) -> None:
    if given.keys() != allowed.keys():
        raise UserError(f"{where}: genes {sorted(given)}, the space has {sorted(allowed)}")
    for gene, value in given.items():
        if value not in allowed[gene]:
            raise UserError(f"{where}.{gene}={value!r}: allowed are {list(allowed[gene])}")
