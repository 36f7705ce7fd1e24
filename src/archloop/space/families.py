"""A family of a space: what its genes are and which values they may take.

A family is a mixer or channel mixer, whose genes are fields of its plug-in's `Config` and of the
place it takes in a spec (multipliers); or `block` and `stack`, whose genes are settings of every
block and of the whole decoder. Here a recipe's names and values meet the plug-ins, so every message
about them is here.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from archloop import registry
from archloop.errors import UserError, invalid
from archloop.space.config import BLOCK, STACK, ByScale, FamilyGenes, Scope, SpaceConfig, listed
from archloop.space.genome import Genes
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

Section = Literal["mixers", "channel_mixers", "block", "stack"]
Scale = Literal["ship", "proxy"]
MAX_COMBINATIONS = 4096
"""Above this, gene values are checked one gene at a time instead of in all combinations."""
PLACE_FIELDS: dict[Section, tuple[str, ...]] = {
    "mixers": ("input_multiplier", "multiplier"),
    "channel_mixers": ("multiplier",),
    "block": ("combine", "post_norms", "residual_multiplier", "side"),
    "stack": ("embedding_multiplier", "logits_divisor", "norm_eps", "norm_offset"),
}
"""Genes that are fields of the spec itself and not of a plug-in's config."""
_PLACES: dict[Section, type[BaseModel]] = {
    "mixers": MixerSpec,
    "channel_mixers": ChannelMixerSpec,
    "block": BlockSpec,
    "stack": StackSpec,
}


@dataclass(frozen=True)
class Family:
    """One family of a space.

    Attributes:
        fixed: settings with one value, at ship width.
        genes: searched genes and their values, as the plug-in's config holds them.
        scopes: where each searched gene varies.
        at_proxy: gene -> value at ship width -> value at proxy width, where they differ.
    """

    section: Section
    name: str
    fixed: Genes
    genes: dict[str, tuple[Scalar, ...]]
    scopes: dict[str, Scope]
    at_proxy: dict[str, dict[Scalar, Scalar]] = field(default_factory=dict)

    def settings(self, values: Genes, scale: Scale = "ship") -> Genes:
        """Every setting that the recipe names, for a value of each gene, at a scale."""
        both = {**self.fixed, **values}
        if scale == "ship":
            return both
        return {gene: self.at_proxy.get(gene, {}).get(v, v) for gene, v in both.items()}

    def config(self, values: Genes, scale: Scale = "ship") -> Any:
        """The plug-in's config for a value of each gene."""
        return plugin_config(self.section, self.name, self.settings(values, scale))

    def scoped(self, scope: Scope) -> list[str]:
        """Names of the genes that vary at a scope."""
        return [gene for gene, where in self.scopes.items() if where == scope]

    def combinations(self) -> Iterator[Genes]:
        """Every combination of gene values; one gene at a time if there are very many."""
        names = list(self.genes)
        if math.prod(len(values) for values in self.genes.values()) <= MAX_COMBINATIONS:
            for values in itertools.product(*self.genes.values()):
                yield dict(zip(names, values, strict=True))
            return
        first = {gene: values[0] for gene, values in self.genes.items()}
        yield first
        for gene, values in self.genes.items():
            yield from ({**first, gene: value} for value in values[1:])

    def is_global(self, d_model: int) -> bool:
        """Whether a mixer of the family reads every earlier token exactly."""
        return self.section == "mixers" and any(
            self.config(genes).is_global(d_model) for genes in self.combinations()
        )

    def reach(self, d_model: int) -> int | None:
        """How far back its mixers see at proxy width, at most; None: everything."""
        reaches = [self.config(genes, "proxy").reach(d_model) for genes in self.combinations()]
        return None if None in reaches else max(reaches)

    def place_defaults(self) -> Genes:
        """Fields of the spec that are genes of the family, with their defaults."""
        fields = _PLACES[self.section].model_fields
        return {name: fields[name].default for name in PLACE_FIELDS[self.section]}

    @cached_property
    def shareable(self) -> bool:
        """Whether a mixer of the family lends its features and state."""
        return self.section == "mixers" and bool(registry.get("mixers", self.name).shareable)


def resolve(config: SpaceConfig) -> dict[str, Family]:
    """The families of a space by name: mixers, channel mixers, `block`, `stack`.

    Raises:
        UserError: an unknown family, field or scope, or a value that a field does not take; the
            message names the key, the value and what is allowed.
    """
    known: dict[str, Family] = {}
    for name, genes in config.mixers.items():
        known[name] = _family("mixers", name, genes, config)
    for name, genes in config.channel_mixers.items():
        known[name] = _family("channel_mixers", name, genes, config)
    known[BLOCK] = _family("block", BLOCK, config.block, config)
    known[STACK] = _family("stack", STACK, config.stack, config)
    _check_scopes(config, known)
    return known


def check_widths(family: Family, config: SpaceConfig) -> None:
    """Every combination of values can be built at both widths and differs from every other.

    Raises:
        UserError: one cannot be built, or two are the same module at a width.
    """
    if family.section in ("block", "stack"):
        return
    scales: tuple[tuple[Scale, int], ...] = (
        ("ship", config.ship.d_model),
        ("proxy", config.proxy.d_model),
    )
    for where, width in scales:
        seen: dict[Any, Genes] = {}
        for genes in family.combinations():
            try:
                signature = family.config(genes, where).signature(width)
            except ValueError as error:
                raise UserError(
                    f"space.{family.section}.{family.name}: "
                    f"{_words(family.settings(genes, where)) or 'its default'} cannot be built at "
                    f"{where}.d_model={width}: {error}"
                ) from error
            place = tuple(
                family.settings(genes, where).get(name) for name in PLACE_FIELDS[family.section]
            )
            twin = seen.setdefault((signature, place), genes)
            if twin is not genes:
                raise UserError(
                    f"space.{family.section}.{family.name}: {_words(twin)} and {_words(genes)} "
                    f"coincide at {where}.d_model={width} ({_words(dict(signature))}); widen "
                    f"{where}.d_model or drop one of the values"
                )


def plugin_config(section: Section, name: str, settings: Genes) -> Any:
    """The validated config of a mixer or channel mixer; fields of its place are left out.

    Raises:
        UserError: as `cost.mixer_config`.
    """
    from archloop.stack import cost  # imports torch, which reading a space must not

    own = {k: v for k, v in settings.items() if k not in PLACE_FIELDS[section]}
    if section == "mixers":
        return cost.mixer_config(MixerSpec(name=name, config=own))
    assert section == "channel_mixers", section
    return cost.channel_config(ChannelMixerSpec(name=name, config=own))


def place_fields(section: Section, settings: Genes) -> dict[str, Any]:
    """Those settings that are fields of the spec itself."""
    return {k: v for k, v in settings.items() if k in PLACE_FIELDS[section]}


# --- from a recipe ------------------------------------------------------------------------------


def _family(section: Section, name: str, given: FamilyGenes, config: SpaceConfig) -> Family:
    where = f"space.{section}" if section in (BLOCK, STACK) else f"space.{section}.{name}"
    fields, searchable = _fields(section, name)
    fixed: Genes = {}
    genes: dict[str, tuple[Scalar, ...]] = {}
    at_proxy: dict[str, dict[Scalar, Scalar]] = {}
    for gene, value in given.items():
        key = f"{where}.{gene}"
        if gene not in fields:
            near = registry.suggest(gene, sorted(fields))
            raise UserError(f"{key}: {name} has no setting {gene!r}; {near}")
        if isinstance(value, list) and gene not in searchable:
            raise UserError(
                f"{key}={value}: not a gene, so it takes one value; "
                f"genes of {name}: {', '.join(sorted(searchable)) or 'none'}"
            )
        values, other = _values(section, name, gene, listed(value), key)
        if len(values) == 1:
            fixed[gene] = values[0]
        else:
            genes[gene] = values
        if other:
            at_proxy[gene] = other
    free = config.budget.free if config.budget else None
    scopes: dict[str, Scope] = {
        gene: "block" if f"{name}.{gene}" == free else _scope(config, section, name, gene)
        for gene in genes
    }
    return Family(section, name, fixed, genes, scopes, at_proxy)


def _fields(section: Section, name: str) -> tuple[list[str], list[str]]:
    """Settings of a family, and those of them that may be searched."""
    if section in (BLOCK, STACK):
        return list(PLACE_FIELDS[section]), list(PLACE_FIELDS[section])
    if name not in registry.names(section):
        near = registry.suggest(name, registry.names(section))
        what = section[:-1].replace("_", " ")
        raise UserError(f"space.{section}: unknown {what} {name!r}; {near}")
    plugin = registry.get(section, name)
    place = list(PLACE_FIELDS[section])
    return [*plugin.Config.model_fields, *place], [*plugin.Config.genes(), *place]


def _values(
    section: Section, name: str, gene: str, given: list[Scalar | ByScale], key: str
) -> tuple[tuple[Scalar, ...], dict[Scalar, Scalar]]:
    """The values of a gene at ship width, and those at proxy width where they are others."""
    at_proxy: dict[Scalar, Scalar] = {}
    values: dict[Scalar, None] = {}
    for value in given:
        pair = value if isinstance(value, ByScale) else ByScale(ship=value, proxy=value)
        ship, proxy = (_checked(section, name, gene, v, key) for v in (pair.ship, pair.proxy))
        values[ship] = None
        if at_proxy.setdefault(ship, proxy) != proxy:
            raise UserError(f"{key}={ship!r}: at proxy width {at_proxy[ship]!r} and {proxy!r}")
    if not values:
        raise UserError(f"{key}=[]: give at least one value, {_allowed(section, name, gene)}")
    return tuple(values), {ship: proxy for ship, proxy in at_proxy.items() if ship != proxy}


def _checked(section: Section, name: str, gene: str, value: Scalar, key: str) -> Scalar:
    """The value as the config or spec holds it (2 becomes 2.0 in a float field)."""
    try:
        if gene in PLACE_FIELDS[section]:
            return _checked_place(section, name, gene, value)
        config = plugin_config(section, name, {gene: value})
    except ValueError as error:
        raise UserError(
            f"{key}={value!r} is not allowed: {error}; {_allowed(section, name, gene)}"
        ) from error
    checked: Scalar = getattr(config, gene)
    return checked


def _checked_place(section: Section, name: str, gene: str, value: Scalar) -> Scalar:
    """The value of a field of the spec, as the spec holds it."""
    needed: dict[Section, dict[str, Any]] = {
        "mixers": {"name": name},
        "channel_mixers": {"name": name},
        "block": {},
        "stack": {"d_model": 1, "vocab_size": 1, "blocks": ()},
    }
    try:
        checked: Scalar = getattr(_PLACES[section](**needed[section], **{gene: value}), gene)
    except ValidationError as error:
        raise invalid(error, where=name) from error
    return checked


def _allowed(section: Section, name: str, gene: str) -> str:
    if gene in PLACE_FIELDS[section]:
        return f"default: {_PLACES[section].model_fields[gene].default!r}"
    config_class = registry.get(section, name).Config
    mark = config_class.genes().get(gene)
    if mark is not None:
        return f"usual values: {', '.join(map(str, mark.values))}"
    return f"default: {config_class.model_fields[gene].default!r}"


def _scope(config: SpaceConfig, section: Section, family: str, gene: str) -> Scope:
    scope = config.scope.get(f"{family}.{gene}", config.scope.get(gene, "family"))
    if section == STACK and scope == "block":
        raise UserError(f"space.scope: {gene} belongs to the whole stack; leave its scope out")
    return scope


def _check_scopes(config: SpaceConfig, families: dict[str, Family]) -> None:
    """Every scope names a gene, and a global gene has the same values everywhere."""
    genes = {
        (family.name, gene)
        for family in families.values()
        for gene in _fields(family.section, family.name)[1]
    }
    known = sorted({gene for _, gene in genes} | {f"{name}.{gene}" for name, gene in genes})
    for key, scope in config.scope.items():
        if key not in known:
            near = registry.suggest(key, known)
            raise UserError(f"space.scope.{key}: no family here has this gene; {near}")
        if config.budget and key == config.budget.free and scope != "block":
            raise UserError(
                f"space.scope.{key}={scope}: the budget moves this gene block by block; "
                "leave its scope out"
            )
    values: dict[str, tuple[str, tuple[Scalar, ...]]] = {}
    for family in families.values():
        for gene in family.scoped("global"):
            first, expected = values.setdefault(gene, (family.name, family.genes[gene]))
            if family.genes[gene] != expected:
                raise UserError(
                    f"space.scope: {gene} is global but {family.name} lists "
                    f"{list(family.genes[gene])} and {first} {list(expected)}; give both the same"
                )


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
