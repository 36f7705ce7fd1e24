"""Reading a genome off a spec or a plain layout, to seed a search with what is known to be good."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from archloop import registry
from archloop.errors import UserError
from archloop.space.families import plugin_config
from archloop.space.genome import BlockGenes, Genes, Genome
from archloop.stack.spec import Scalar, StackSpec

if TYPE_CHECKING:
    from archloop.space.space import Space


def from_spec(space: "Space", spec: StackSpec) -> Genome:
    """See `Space.from_spec`."""
    found: dict[str, tuple[Scalar, str]] = {}
    blocks = []
    for index, block in enumerate(spec.blocks):
        where = f"blocks[{index}]"
        if len(block.mixers) != 1 or block.channel_mixer is None:
            raise UserError(f"{where}: a genome has one mixer and one channel mixer a block")
        if block.post_norms or block.residual_multiplier != 1.0:
            raise UserError(f"{where}: post_norms and residual_multiplier are not in any space")
        mixer, channel = block.mixers[0], block.channel_mixer
        blocks.append(
            BlockGenes(
                mixer=mixer.name,
                genes=_read(space, mixer.name, mixer.config, where, found),
                channel_mixer=channel.name,
                channel_genes=_read(space, channel.name, channel.config, where, found),
                weights_from=mixer.weights_from,
                state_from=mixer.state_from,
            )
        )
    return _placed(space, blocks, {key: value for key, (value, _) in found.items()})


def from_layout(space: "Space", layout: Sequence[str]) -> Genome:
    """See `Space.from_layout`."""
    blocks = []
    for index, name in enumerate(layout):
        if name not in space.mixers:
            near = registry.suggest(name, space.mixers)
            raise UserError(f"layout[{index}]={name!r} is not in space.mixers; {near}")
        channel = space.channel_mixers[0]
        blocks.append(
            BlockGenes(
                mixer=name,
                genes=space.first_genes(name),
                channel_mixer=channel,
                channel_genes=space.first_genes(channel),
            )
        )
    return _placed(space, blocks, {})


def _placed(space: "Space", blocks: Sequence[BlockGenes], wide: Genes) -> Genome:
    """A repaired genome of given blocks; `wide` holds global genes by ``gene``, family genes by
    ``family.gene``, and the first listed value serves for the rest.
    """
    if not blocks:
        raise UserError(f"no blocks; the space allows {list(space.config.num_blocks)}")
    genome = Genome(
        global_genes={gene: wide.get(gene, v[0]) for gene, v in space.global_genes.items()},
        family_genes={
            name: {gene: wide.get(f"{name}.{gene}", v[0]) for gene, v in genes.items()}
            for name, genes in space.family_genes.items()
        },
        blocks=tuple(blocks),
        period=_period_of(space, blocks),
    )
    return space.repair(genome)


def _period_of(space: "Space", blocks: Sequence[BlockGenes]) -> int | None:
    """The shortest allowed period that the blocks repeat with; None under the free rule."""
    rules = space.config.interleaving
    if rules.rule == "free":
        return None
    kinds = [
        (
            block.mixer,
            block.genes,
            block.channel_mixer,
            {
                gene: value
                for gene, value in block.channel_genes.items()
                if not space.is_free(block.channel_mixer, gene)
            },
        )
        for block in blocks
    ]
    for period in range(rules.period[0], min(rules.period[1], len(kinds)) + 1):
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds)):
            return period
    raise UserError(
        f"{'-'.join(block.mixer for block in blocks)} repeats with no period from "
        f"{rules.period[0]} to {rules.period[1]}; change it or space.interleaving.period"
    )


def _read(
    space: "Space", name: str, given: Genes, where: str, found: dict[str, tuple[Scalar, str]]
) -> Genes:
    """Block-scoped genes of a mixer's settings; the wider ones go to `found`."""
    own: Genes = {}
    for gene, scope, value in _settings(space, name, given, where):
        if scope == "block":
            own[gene] = value
            continue
        key = gene if scope == "global" else f"{name}.{gene}"
        first, first_where = found.setdefault(key, (value, where))
        if first != value:
            raise UserError(
                f"{where}: {name}.{gene}={value!r} but {first!r} in {first_where}; "
                f"the gene's scope is {scope}"
            )
    return own


def _settings(
    space: "Space", name: str, given: Genes, where: str
) -> Iterator[tuple[str, str, Scalar]]:
    """Searched genes with scope and value; refuses any other setting that differs from ours.

    A gene that the spec leaves to a default outside the listed values takes the first of them, and
    so does the free gene, which repair will set.
    """
    family = space.families.get(name)
    if family is None:
        raise UserError(f"{where}: {name!r} is not in the space")
    first = family.config({gene: values[0] for gene, values in family.genes.items()})
    theirs = plugin_config(family.kind, name, given)
    for field in type(first).model_fields:
        value = getattr(theirs, field)
        if field in family.genes:
            left_out = field not in given and value not in family.genes[field]
            if left_out or space.is_free(name, field):
                value = family.genes[field][0]
            yield field, family.scopes[field], value
        elif value != getattr(first, field):
            raise UserError(
                f"{where}: {name}.{field}={value!r}; in the space it is {getattr(first, field)!r}"
            )
