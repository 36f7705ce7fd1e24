"""A family of a space: one mixer or channel mixer with the values its genes may take.

Here a recipe's names and values meet the plug-in's `Config`, so every message about them is here.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from archloop import registry
from archloop.errors import UserError
from archloop.space.config import FamilyGenes, Scope, SpaceConfig
from archloop.space.genome import Genes
from archloop.stack.spec import ChannelMixerSpec, MixerSpec, Scalar

Kind = Literal["mixers", "channel_mixers"]
MAX_COMBINATIONS = 4096
"""Above this, gene values are checked one gene at a time instead of in all combinations."""


@dataclass(frozen=True)
class Family:
    """A mixer or channel mixer of a space.

    Attributes:
        fixed: settings with one value.
        genes: searched genes and their values, as the plug-in's config holds them.
        scopes: where each searched gene varies.
        is_global: reaches every earlier token exactly.
        shareable: lends its features and state.
    """

    kind: Kind
    name: str
    fixed: Genes
    genes: dict[str, tuple[Scalar, ...]]
    scopes: dict[str, Scope]
    is_global: bool = False
    shareable: bool = False

    def config(self, values: Genes) -> Any:
        """The plug-in's config for a value of each gene."""
        return plugin_config(self.kind, self.name, {**self.fixed, **values})

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

    @cached_property
    def window(self) -> int:
        """The largest window of the family, 0 if it has none."""
        configs = (self.config(genes) for genes in self.combinations())
        return max(getattr(config, "window", None) or 0 for config in configs)


def resolve(config: SpaceConfig) -> dict[str, Family]:
    """The families of a space by name, mixers first.

    Raises:
        UserError: an unknown family, field or scope, or a value that a field does not take; the
            message names the key, the value and what is allowed.
    """
    known: dict[str, Family] = {}
    for name, genes in config.mixers.items():
        known[name] = _family("mixers", name, genes, config)
    for name, genes in config.channel_mixers.items():
        known[name] = _family("channel_mixers", name, genes, config)
    _check_scopes(config, known)
    return known


def check_widths(family: Family, config: SpaceConfig) -> None:
    """Every combination of values can be built at both widths and differs from every other.

    Raises:
        UserError: one cannot be built, or two are the same module at proxy width.
    """
    for where, width in (("ship", config.ship.d_model), ("proxy", config.proxy.d_model)):
        seen: dict[Any, Genes] = {}
        for genes in family.combinations():
            try:
                sizes = family.config(genes).sizes(width)
            except ValueError as error:
                raise UserError(
                    f"space.{family.kind}.{family.name}: "
                    f"{_words({**family.fixed, **genes}) or 'its default'} cannot be built at "
                    f"{where}.d_model={width}: {error}"
                ) from error
            # Settings that are no sizes (a name, a switch) make a difference of their own.
            other = tuple((k, v) for k, v in genes.items() if isinstance(v, (bool, str)))
            twin = seen.setdefault((tuple(sorted(sizes.items())), other), genes)
            if twin is not genes:
                raise UserError(
                    f"space.{family.kind}.{family.name}: {_words(twin)} and {_words(genes)} "
                    f"coincide at {where}.d_model={width} ({_words(sizes)}); widen "
                    f"{where}.d_model or drop one of the values"
                )


def _family(kind: Kind, name: str, given: FamilyGenes, config: SpaceConfig) -> Family:
    where = f"space.{kind}"
    if name not in registry.names(kind):
        near = registry.suggest(name, registry.names(kind))
        raise UserError(f"{where}: unknown {kind[:-1].replace('_', ' ')} {name!r}; {near}")
    plugin = registry.get(kind, name)
    fields, searchable = plugin.Config.model_fields, plugin.Config.genes()
    fixed: Genes = {}
    genes: dict[str, tuple[Scalar, ...]] = {}
    for field, value in given.items():
        key = f"{where}.{name}.{field}"
        if field not in fields:
            near = registry.suggest(field, sorted(fields))
            raise UserError(f"{key}: {name} has no setting {field!r}; {near}")
        if not isinstance(value, list):
            fixed[field] = _checked(kind, name, field, value, key)
            continue
        if field not in searchable:
            raise UserError(
                f"{key}={value}: not a gene, so it takes one value; "
                f"genes of {name}: {', '.join(sorted(searchable)) or 'none'}"
            )
        checked = tuple(dict.fromkeys(_checked(kind, name, field, v, key) for v in value))
        if not checked:
            raise UserError(f"{key}=[]: give at least one value, {_allowed(plugin, field)}")
        if len(checked) == 1:
            fixed[field] = checked[0]
        else:
            genes[field] = checked
    free = config.budget.free if config.budget else None
    scopes: dict[str, Scope] = {
        gene: "block" if f"{name}.{gene}" == free else _scope(config, name, gene) for gene in genes
    }
    return Family(
        kind,
        name,
        fixed,
        genes,
        scopes,
        is_global=getattr(plugin, "is_global", False),
        shareable=getattr(plugin, "shareable", False),
    )


def _checked(kind: Kind, name: str, field: str, value: Scalar, key: str) -> Scalar:
    """The value as the config holds it (2 becomes 2.0 in a float field)."""
    try:
        config = plugin_config(kind, name, {field: value})
    except ValueError as error:
        allowed = _allowed(registry.get(kind, name), field)
        raise UserError(f"{key}={value!r} is not allowed: {error}; {allowed}") from error
    checked: Scalar = getattr(config, field)
    return checked


def _allowed(plugin: Any, field: str) -> str:
    gene = plugin.Config.genes().get(field)
    if gene is not None:
        return f"usual values: {', '.join(map(str, gene.values))}"
    default = plugin.Config.model_fields[field].default
    return f"default: {default!r}"


def _scope(config: SpaceConfig, family: str, gene: str) -> Scope:
    return config.scope.get(f"{family}.{gene}", config.scope.get(gene, "family"))


def _check_scopes(config: SpaceConfig, families: dict[str, Family]) -> None:
    """Every scope names a gene, and a global gene has the same values everywhere."""
    genes = {
        (family.name, gene)
        for family in families.values()
        for gene in registry.get(family.kind, family.name).Config.genes()
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


def _words(values: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def plugin_config(kind: Kind, name: str, values: Genes) -> Any:
    """The validated config of a mixer or channel mixer.

    Raises:
        UserError: as `cost.mixer_config`.
    """
    from archloop.stack import cost  # imports torch, which reading a space must not

    if kind == "mixers":
        return cost.mixer_config(MixerSpec(name=name, config=values))
    return cost.channel_config(ChannelMixerSpec(name=name, config=values))
