"""From a genome to a spec, at ship or proxy width."""

from typing import Any

from pydantic import BaseModel

from archloop.space.config import BLOCK, STACK
from archloop.space.families import PLACE_FIELDS, Scale, place_fields, plugin_config
from archloop.space.genome import BlockGenes, ChannelGenes, Genes, Genome, MixerGenes
from archloop.space.space import Space
from archloop.stack.spec import (
    BlockSpec,
    ChannelMixerSpec,
    MixerSpec,
    Scalar,
    StackSpec,
)


def encode(space: Space, genome: Genome, scale: Scale, vocab_size: int) -> StackSpec:
    """The spec that a genome says; `specs.to_spec` is what a search wants.

    Args:
        space: the genome is of this one.
        genome: to encode; its free genes are taken as they are.
        scale: which width, and which of a gene's values where it has two.
        vocab_size: of the spec.
    """
    ship = space.config.ship
    width = ship.d_model if scale == "ship" else space.config.proxy.d_model
    stack = space.families[STACK].settings(space.values(genome, STACK, {}), scale)
    return StackSpec(
        d_model=width,
        vocab_size=vocab_size,
        tie_embeddings=ship.tie_embeddings,
        blocks=tuple(_block(space, genome, block, scale) for block in genome.blocks),
        **place_fields("stack", stack),
    )


def identity(space: Space, genome: Genome) -> tuple[object, ...]:
    """What a genome's ship spec depends on: genomes with equal identities have equal specs.

    Genes of families that no block has play no part. Some fifty times cheaper than the spec.
    """
    known: dict[str, tuple[Scalar, ...]] = {}

    def values(name: str, own: Genes) -> tuple[Scalar, ...]:
        if own:
            return tuple(space.values(genome, name, own).values())
        if name not in known:
            known[name] = tuple(space.values(genome, name, own).values())
        return known[name]

    def block_values(block: BlockGenes) -> tuple[Scalar, ...]:
        found = space.values(genome, BLOCK, block.genes)
        if len(block.mixers) < 2:
            found.pop("combine", None)
        return tuple(found.values())

    blocks = []
    for block in genome.blocks:
        channel = block.channel_mixer
        blocks.append(
            (
                tuple(
                    (m.name, values(m.name, m.genes), m.weights_from, m.state_from)
                    for m in block.mixers
                ),
                channel
                and (channel.name, values(channel.name, channel.genes), channel.weights_from),
                block_values(block),
            )
        )
    return (values(STACK, {}), *blocks)


def proxied(space: Space, spec: StackSpec, vocab_size: int) -> StackSpec:
    """A given spec at proxy width, such as the reference preset's: what no genome stands for.

    Settings that the space gives another value at proxy width take it here too.
    """
    blocks = []
    for block in spec.blocks:
        channel = block.channel_mixer
        halves = {
            "mixers": tuple(
                mixer.model_copy(update=_at_proxy(space, mixer)) for mixer in block.mixers
            ),
            "channel_mixer": channel and channel.model_copy(update=_at_proxy(space, channel)),
        }
        blocks.append(block.model_copy(update=halves | _place_at_proxy(space, BLOCK, block)))
    return spec.replace(
        d_model=space.config.proxy.d_model,
        vocab_size=vocab_size,
        blocks=[block.model_dump() for block in blocks],
        **_place_at_proxy(space, STACK, spec),
    )


def _at_proxy(space: Space, part: MixerSpec | ChannelMixerSpec) -> dict[str, Any]:
    """What of a mixer or channel mixer is another at proxy width."""
    family = space.families.get(part.name)
    if family is None:
        return {}
    # With defaults filled in: a spec need not name the value that is another at proxy width.
    said = plugin_config(family.section, part.name, part.config).model_dump()
    moved = {
        gene: other[said[gene]]
        for gene, other in family.at_proxy.items()
        if gene in said and said[gene] in other
    }
    return {"config": {**part.config, **moved}, **_place_at_proxy(space, part.name, part)}


def _place_at_proxy(space: Space, name: str, place: BaseModel) -> dict[str, Any]:
    """Fields of the spec itself that are others at proxy width."""
    family = space.families[name]
    return {
        gene: other[getattr(place, gene)]
        for gene, other in family.at_proxy.items()
        if gene in PLACE_FIELDS[family.section] and getattr(place, gene) in other
    }


def _block(space: Space, genome: Genome, block: BlockGenes, scale: Scale) -> BlockSpec:
    own = space.families[BLOCK].settings(space.values(genome, BLOCK, block.genes), scale)
    if len(block.mixers) < 2:
        # With a single mixer the setting has no effect; kept, it would make equal stacks look
        # different.
        own.pop("combine", None)
    channel = block.channel_mixer
    return BlockSpec(
        mixers=tuple(_mixer(space, genome, mixer, scale) for mixer in block.mixers),
        channel_mixer=None if channel is None else _channel(space, genome, channel, scale),
        **place_fields("block", own),
    )


def _mixer(space: Space, genome: Genome, mixer: MixerGenes, scale: Scale) -> MixerSpec:
    place, config = _split(space, genome, mixer, scale)
    return MixerSpec(
        name=mixer.name,
        config=config,
        weights_from=mixer.weights_from,
        state_from=mixer.state_from,
        **place,
    )


def _channel(space: Space, genome: Genome, channel: ChannelGenes, scale: Scale) -> ChannelMixerSpec:
    place, config = _split(space, genome, channel, scale)
    return ChannelMixerSpec(
        name=channel.name, config=config, weights_from=channel.weights_from, **place
    )


def _split(
    space: Space, genome: Genome, part: MixerGenes | ChannelGenes, scale: Scale
) -> tuple[dict[str, float], Genes]:
    """Fields of the spec, and settings of the plug-in."""
    family = space.families[part.name]
    settings = family.settings(space.values(genome, part.name, part.genes), scale)
    place = place_fields(family.section, settings)
    return place, {k: v for k, v in settings.items() if k not in place}
