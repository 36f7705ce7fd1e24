"""Reading a genome off a spec or a plain layout, to seed a search with what is known to be good."""

from collections.abc import Iterator, Sequence

from archloop import registry
from archloop.errors import UserError
from archloop.space.config import BLOCK, STACK
from archloop.space.families import PLACE_FIELDS, Section, plugin_config
from archloop.space.genome import BlockGenes, ChannelGenes, Genes, Genome, MixerGenes
from archloop.space.repair import repair
from archloop.space.space import Space
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

Found = dict[str, tuple[Scalar, str]]
"""Values of genes of a wider scope than one block, each with the place it was first read at."""


def from_spec(space: Space, spec: StackSpec) -> Genome:
    """The genome with a spec's blocks, genes and sharing; widths and the free gene are ours.

    Raises:
        UserError: the layout or a setting is not in this space (says which), or the parameter
            budget is out of its reach.
    """
    found: Found = {}
    _read(space, STACK, spec.model_dump(include=set(PLACE_FIELDS["stack"])), "stack", found)
    blocks = [
        _block(space, block, f"blocks[{index}]", found) for index, block in enumerate(spec.blocks)
    ]
    return _placed(space, blocks, {key: value for key, (value, _) in found.items()})


def from_layout(space: Space, layout: Sequence[str]) -> Genome:
    """The genome with these mixers by block and the first listed value of every gene.

    Args:
        space: the genome is for this one.
        layout: a mixer's name by block; ``a+b`` for parallel mixers, ``-`` for none. A block has
            a channel mixer where the space allows one.

    Raises:
        UserError: as `from_spec`.
    """
    blocks = []
    for index, names in enumerate(layout):
        mixers = [] if names == "-" else names.split("+")
        for name in mixers:
            if name not in space.mixers:
                near = registry.suggest(name, space.mixers)
                raise UserError(f"layout[{index}]={name!r} is not in space.mixers; {near}")
        has_channel = not mixers or "both" in space.halves
        blocks.append(
            BlockGenes(
                mixers=tuple(MixerGenes(name=n, genes=space.first_genes(n)) for n in mixers),
                channel_mixer=_first_channel(space) if has_channel else None,
                genes=space.first_genes(BLOCK),
            )
        )
    return _placed(space, blocks, {})


def pure(space: Space, mixer: str) -> Genome:
    """A stack of one mixer at the space's smallest depth, with first values and no budget kept.

    Where no block has both halves, blocks with the mixer and with a channel mixer alternate.
    """
    first = BlockGenes(
        mixers=(MixerGenes(name=mixer, genes=space.first_genes(mixer)),),
        channel_mixer=_first_channel(space) if "both" in space.halves else None,
        genes=space.first_genes(BLOCK),
    )
    second = first
    if "both" not in space.halves and "channel_mixer" in space.halves:
        second = first.model_copy(update={"mixers": (), "channel_mixer": _first_channel(space)})
    return Genome(
        global_genes={gene: values[0] for gene, values in space.global_genes.items()},
        family_genes={
            name: {gene: values[0] for gene, values in genes.items()}
            for name, genes in space.family_genes.items()
        },
        blocks=tuple((first, second)[i % 2] for i in range(space.config.num_blocks[0])),
    )


def _first_channel(space: Space) -> ChannelGenes | None:
    for name in space.channel_mixers:
        return ChannelGenes(name=name, genes=space.first_genes(name))
    return None


def _block(space: Space, block: BlockSpec, where: str, found: Found) -> BlockGenes:
    channel = block.channel_mixer
    mixers = tuple(
        MixerGenes(
            name=mixer.name,
            genes=_read(space, mixer.name, _settings_of(mixer), where, found),
            weights_from=mixer.weights_from,
            state_from=mixer.state_from,
        )
        for mixer in block.mixers
    )
    given = block.model_dump(include=set(PLACE_FIELDS["block"]))
    # With a single mixer there is nothing to combine, so the setting is left out.
    unsaid = ("combine",) if len(mixers) < 2 else ()
    return BlockGenes(
        mixers=mixers,
        channel_mixer=None
        if channel is None
        else ChannelGenes(
            name=channel.name,
            genes=_read(space, channel.name, _settings_of(channel), where, found),
            weights_from=channel.weights_from,
        ),
        genes=_read(space, BLOCK, given, where, found, unsaid),
    )


def _settings_of(part: MixerSpec | ChannelMixerSpec) -> Genes:
    """Settings of the plug-in and of its place together."""
    section: Section = "mixers" if isinstance(part, MixerSpec) else "channel_mixers"
    place = part.model_dump(include=set(PLACE_FIELDS[section]))
    return {**part.config, **place}


def _placed(space: Space, blocks: Sequence[BlockGenes], wide: Genes) -> Genome:
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
    return repair(space, genome)


def _period_of(space: Space, blocks: Sequence[BlockGenes]) -> int | None:
    """The shortest allowed period that the blocks repeat with; None under the free rule."""
    rules = space.config.interleaving
    if rules.rule == "free":
        return None
    for period in range(rules.period[0], min(rules.period[1], len(blocks)) + 1):
        if all(space.alike(block, blocks[i % period]) for i, block in enumerate(blocks)):
            return period
    layout = Genome(blocks=tuple(blocks)).layout
    raise UserError(
        f"{'-'.join(layout)} repeats with no period from "
        f"{rules.period[0]} to {rules.period[1]}; change it or space.interleaving.period"
    )


def _read(
    space: Space,
    name: str,
    given: Genes,
    where: str,
    found: Found,
    unsaid: Sequence[str] = (),
) -> Genes:
    """Block-scoped genes of a family's settings; the wider ones go to `found`.

    Genes that are unsaid take the first listed value, where no other place says another.
    """
    if name not in space.families:
        raise UserError(f"{where}: {name!r} is not in the space")
    own: Genes = space.first_genes(name)
    kept = {gene: value for gene, value in given.items() if gene not in unsaid}
    for gene, scope, value in _searched(space, name, kept, where):
        if gene in unsaid:
            continue
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


def _searched(
    space: Space, name: str, given: Genes, where: str
) -> Iterator[tuple[str, str, Scalar]]:
    """Searched genes with scope and value; refuses any other setting that differs from ours.

    A gene that the spec leaves to a default outside the listed values takes the first of them, and
    so does the free gene, which repair will set.
    """
    family = space.families[name]
    first = {gene: values[0] for gene, values in family.genes.items()}
    ours, theirs = _all_settings(space, name, first), _all_settings(space, name, given, raw=True)
    for field, mine in ours.items():
        value = (
            theirs[field] if field in given or field not in PLACE_FIELDS[family.section] else mine
        )
        if field in family.genes:
            left_out = field not in given and value not in family.genes[field]
            if left_out or space.is_free(name, field):
                value = family.genes[field][0]
            yield field, family.scopes[field], value
        elif value != mine:
            raise UserError(f"{where}: {name}.{field}={value!r}; in the space it is {mine!r}")


def _all_settings(space: Space, name: str, given: Genes, raw: bool = False) -> Genes:
    """Every setting of a family with its value: given, fixed by the space unless raw, default."""
    family = space.families[name]
    settings = given if raw else family.settings(given)
    known: Genes = {}
    if family.section in ("mixers", "channel_mixers"):
        known = plugin_config(family.section, name, settings).model_dump()
    defaults = family.place_defaults()
    return {**known, **{field: settings.get(field, value) for field, value in defaults.items()}}
