"""The space of stacks that a search may try, as data: families, the budget's free gene, look-ups.

What is done with it stands beside it, one verb each:

    >>> space = opening.open_space(SpaceConfig(**recipe["space"]))
    >>> genome = variation.sample(space, np.random.default_rng(0))
    >>> specs.to_spec(space, genome, "ship").layout
    ['short_conv', 'short_conv', 'gqa', 'short_conv']
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

from archloop import registry
from archloop.errors import UserError
from archloop.space.config import BLOCK, MAX_GRID, STACK, SpaceConfig
from archloop.space.families import Family, check_widths, resolve
from archloop.space.genome import CHANNEL, BlockGenes, Genes, Genome, Halves, Part, Slot
from archloop.stack.spec import Scalar


@dataclass(frozen=True)
class FreeGene:
    """The gene that meets the parameter budget.

    Attributes:
        family: a channel mixer.
        gene: of it.
        grid: values of the gene, fewest parameters first.
    """

    family: str
    gene: str
    grid: tuple[Scalar, ...]


@dataclass(frozen=True)
class Space:
    """A checked `SpaceConfig`. Make it with `opening.open_space`.

    Attributes:
        families: by name; mixers, then channel mixers, then `block` and `stack`.
        free: what meets the parameter budget; None without a budget, or with one value only.
        global_mixers: mixers that read every earlier token exactly, in the recipe's order.
    """

    config: SpaceConfig
    families: dict[str, Family]
    free: FreeGene | None
    global_mixers: tuple[str, ...]

    @classmethod
    def from_config(cls, config: SpaceConfig) -> "Space":
        """Check names, values and widths against the plug-ins.

        Raises:
            UserError: a name or value that does not exist, values that coincide or cannot be built
                at one of the widths; names key, value and remedy.
        """
        families = resolve(config)
        width = config.ship.d_model
        for family in families.values():
            check_widths(family, config)
        names = tuple(name for name in config.mixers if families[name].is_global(width))
        if config.interleaving.min_global and not names:
            raise UserError(
                f"space.interleaving.min_global={config.interleaving.min_global}, but none of "
                f"{', '.join(config.mixers)} reaches every token; add gqa to space.mixers"
            )
        return cls(config, families, _free(config, families), names)

    @property
    def mixers(self) -> list[str]:
        """Names of the mixers, in the recipe's order."""
        return list(self.config.mixers)

    @property
    def channel_mixers(self) -> list[str]:
        """Names of the channel mixers, likewise."""
        return list(self.config.channel_mixers)

    @property
    def halves(self) -> tuple[Halves, ...]:
        """Which halves a block may have."""
        return self.config.structure.halves

    @cached_property
    def global_genes(self) -> dict[str, tuple[Scalar, ...]]:
        """Values of the global genes."""
        return {
            gene: family.genes[gene]
            for family in self.families.values()
            for gene in family.scoped("global")
        }

    @cached_property
    def family_genes(self) -> dict[str, dict[str, tuple[Scalar, ...]]]:
        """Values of the family genes, by family."""
        found = {}
        for family in self.families.values():
            if family.scoped("family"):
                found[family.name] = {g: family.genes[g] for g in family.scoped("family")}
        return found

    def values(self, genome: Genome, name: str, block_genes: Genes) -> Genes:
        """The value of every searched gene of a family in a block."""
        return {
            gene: genome.global_genes[gene]
            if scope == "global"
            else genome.family_genes[name][gene]
            if scope == "family"
            else block_genes[gene]
            for gene, scope in self.families[name].scopes.items()
        }

    def first_genes(self, name: str) -> Genes:
        """The first listed value of each block-scoped gene of a family."""
        family = self.families[name]
        return {gene: family.genes[gene][0] for gene in family.scoped("block")}

    def sharing_fields(self, slot: Slot, part: Part) -> list[str]:
        """Ways in which a mixer or channel mixer may take from an earlier block."""
        allowed = self.config.sharing
        if slot == CHANNEL:
            return ["weights_from"] if allowed.channel_weights else []
        fields = ["weights_from"] if allowed.weights else []
        if allowed.state and self.families[part.name].shareable:
            fields.append("state_from")
        return fields

    def is_free(self, name: str, gene: str) -> bool:
        """Whether repair, not variation, sets this gene."""
        return self.free is not None and (self.free.family, self.free.gene) == (name, gene)

    def same(self, a: Part, b: Part) -> bool:
        """Whether two parts are of one family with equal genes, those aside that repair sets."""
        if type(a) is not type(b) or a.name != b.name:
            return False
        return self._own(a) == self._own(b)

    def alike(self, a: BlockGenes, b: BlockGenes) -> bool:
        """Whether two blocks consist of the same parts, sharing and free genes aside."""
        if a.slots != b.slots or a.genes != b.genes:
            return False
        pairs = [(a.part(slot), b.part(slot)) for slot in a.slots]
        return all(x is not None and y is not None and self.same(x, y) for x, y in pairs)

    def has_global(self, block: BlockGenes) -> bool:
        """Whether some mixer of a block reads every earlier token exactly."""
        return any(mixer.name in self.global_mixers for mixer in block.mixers)

    @cached_property
    def size(self) -> int:
        """How many genomes differ, sharing and the free gene aside: an upper bound on the specs."""
        once: int = math.prod(len(values) for values in self.global_genes.values())
        for genes in self.family_genes.values():
            once *= math.prod(len(values) for values in genes.values())
        mixers: int = sum(self._choices(name) for name in self.mixers)
        channels: int = sum(self._choices(name) for name in self.channel_mixers)
        # Parallel mixers have no order.
        some = sum(math.comb(mixers + n - 1, n) for n in self.config.structure.num_mixers)
        by_halves = {"both": some * channels, "mixers": some, "channel_mixer": channels}
        block = self._choices(BLOCK) * sum(by_halves[half] for half in set(self.halves))
        rules = self.config.interleaving
        depths = list(self.config.num_blocks)
        if rules.rule == "free":
            lengths = depths
        else:
            periods = range(rules.period[0], rules.period[1] + 1)
            lengths = [period for depth in depths for period in periods if period <= depth]
        return once * sum(int(block**length) for length in lengths)

    def describe(self) -> str:
        """The space in a few lines of plain words."""
        config = self.config
        depths = " or ".join(map(str, config.num_blocks))
        lines = [f"{depths} blocks, d_model {config.ship.d_model} (proxy {config.proxy.d_model})"]
        for family in self.families.values():
            if family.name in (BLOCK, STACK) and not family.genes:
                continue
            genes = "; ".join(
                f"{gene} {'|'.join(map(str, values))} ({family.scopes[gene]})"
                for gene, values in family.genes.items()
            )
            lines.append(f"{family.name}: {genes or 'no searched genes'}")
        # Not the number itself: of a thousand blocks it is larger than any float.
        lines.append(f"about 10^{math.log10(self.size):.1f} layouts")
        return "\n".join(lines)

    def _choices(self, name: str) -> int:
        family = self.families[name]
        searched = [g for g in family.scoped("block") if not self.is_free(name, g)]
        return math.prod(len(family.genes[gene]) for gene in searched)

    def _own(self, part: Part) -> Genes:
        return {g: value for g, value in part.genes.items() if not self.is_free(part.name, g)}


def _free(config: SpaceConfig, families: dict[str, Family]) -> FreeGene | None:
    """The budget's free gene and its grid by ascending parameters."""
    budget = config.budget
    if budget is None:
        return None
    key = f"space.budget.free={budget.free!r}"
    name, _, gene = budget.free.partition(".")
    if name not in config.channel_mixers:
        near = registry.suggest(name, list(config.channel_mixers))
        raise UserError(f"{key}: {name!r} is not in space.channel_mixers; {near}")
    family = families[name]
    if gene not in family.genes and gene not in family.fixed:
        raise UserError(
            f"{key}: list the values that {gene or 'the gene'} may take under "
            f"space.channel_mixers.{name}"
        )
    if gene in family.fixed:
        return None
    grid = family.genes[gene]
    if len(grid) > MAX_GRID:
        raise UserError(
            f"{key}: {len(grid)} values; give at most {MAX_GRID}, so that blocks repeat"
        )
    others = [other for other in family.scoped("block") if other != gene]
    if others:
        raise UserError(
            f"space.scope: {name}.{others[0]} cannot vary by block while {budget.free} meets "
            "the budget; make its scope family"
        )
    if gene in family.at_proxy:
        raise UserError(f"{key}: its values cannot differ at proxy width; give each once")
    first = next(family.combinations())
    width = config.ship.d_model

    def num_params(value: Scalar) -> int:
        count: int = family.config({**first, gene: value}).num_params(width)
        return count

    sizes = {value: num_params(value) for value in grid}
    ordered = tuple(sorted(grid, key=sizes.__getitem__))
    for less, more in itertools.pairwise(ordered):
        if sizes[less] == sizes[more]:
            raise UserError(
                f"{key}: {less!r} and {more!r} have equally many parameters; name a gene that "
                f"changes their number, such as {name}.expansion"
            )
    return FreeGene(name, gene, ordered)
