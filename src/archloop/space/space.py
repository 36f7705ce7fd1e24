"""The space of stacks that a search may try: sample, vary, repair, and turn genomes into specs.

A genome says layout and ratios, not widths, so `to_spec` builds it at ship width (profiled) and at
proxy width (trained). Whatever leaves a `Space` keeps all its rules; `space.repair` sees to that.

    >>> space = Space(SpaceConfig(**recipe["space"]))
    >>> genome = space.sample(np.random.default_rng(0))
    >>> space.to_spec(genome, "ship").layout
    ['short_conv', 'short_conv', 'gqa', 'short_conv']
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from archloop import registry
from archloop.errors import UserError
from archloop.space import encoding, variation
from archloop.space import repair as rules
from archloop.space.config import MAX_GRID, SpaceConfig
from archloop.space.families import Kind, check_widths, resolve
from archloop.space.genome import BlockGenes, Genes, Genome
from archloop.space.repair import OutOfReachError
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

Scale = Literal["ship", "proxy"]
WINDOWS_PER_SEQUENCE = 4
"""A proxy sequence must be so many windows long for a window to differ from full attention."""


class Space:
    """A checked `SpaceConfig`.

    Attributes:
        families: by name, mixers first.
        global_mixers: mixers that reach every earlier token, in the recipe's order.
        free_gene: family and gene that meet the parameter budget; None without one.
        free_grid: its values, fewest parameters first.

    Raises:
        UserError: a name or value that does not exist, values that coincide or cannot be built at
            one of the widths, or rules that no genome keeps; names key, value and remedy.
    """

    def __init__(self, config: SpaceConfig) -> None:
        self.config = config
        self.families = resolve(config)
        self.mixers = list(config.mixers)
        self.channel_mixers = list(config.channel_mixers)
        self.global_mixers = [name for name in self.mixers if self.families[name].is_global]
        if config.interleaving.min_global and not self.global_mixers:
            raise UserError(
                f"space.interleaving.min_global={config.interleaving.min_global}, but none of "
                f"{', '.join(self.mixers)} reaches every token; add gqa to space.mixers"
            )
        for family in self.families.values():
            check_widths(family, config)
        self.free_gene, self.free_grid = self._free()
        if config.budget is not None:
            self._check_reachable()

    # --- genomes ------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator) -> Genome:
        """A random genome.

        The proportions of the mixers are drawn first, so that pure and mixed stacks both occur.

        Raises:
            OutOfReachError: no genome near the parameter budget was found.
        """
        return variation.sampled(self, rng)

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """A different genome, one structural change away (see `space.variation.OPERATORS`).

        Where no change of this one keeps the rules, a random genome.
        """
        return variation.mutated(self, genome, rng)

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """A child of two genomes by two-point crossover at block boundaries."""
        return variation.crossed(self, a, b, rng)

    def repair(self, genome: Genome) -> Genome:
        """The genome with every rule kept; one that keeps them is returned equal.

        Raises:
            OutOfReachError: no setting of the free gene meets the parameter budget.
            UserError: the genome has mixers, genes or values that this space does not.
        """
        self.check(genome)
        return rules.repaired(self, genome)

    def check(self, genome: Genome) -> None:
        """Refuse what repair cannot mend: names, values and depths from outside the space.

        Raises:
            UserError: names the block, gene and value.
        """
        config = self.config
        if len(genome.blocks) not in config.num_blocks:
            raise UserError(
                f"{len(genome.blocks)} blocks; the space allows {list(config.num_blocks)}"
            )
        shortest, longest = config.interleaving.period
        if (genome.period is not None) != (config.interleaving.rule == "periodic") or not (
            genome.period is None or shortest <= genome.period <= longest
        ):
            raise UserError(
                f"period={genome.period}; the space is {config.interleaving.rule}"
                f"{'' if genome.period is None else f' with periods {shortest} to {longest}'}"
            )
        self._check_genes("global_genes", genome.global_genes, self.global_genes)
        for name in sorted(set(genome.family_genes) | set(self.family_genes)):
            given, allowed = genome.family_genes.get(name, {}), self.family_genes.get(name, {})
            self._check_genes(f"family_genes.{name}", given, allowed)
        for index, block in enumerate(genome.blocks):
            self._check_block(f"blocks[{index}]", block)

    # --- specs --------------------------------------------------------------------------------

    def to_spec(self, genome: Genome, scale: Scale, vocab_size: int | None = None) -> StackSpec:
        """The spec of a genome at a scale.

        Args:
            genome: of this space.
            scale: which width; also which vocabulary unless `vocab_size` is given.
            vocab_size: of the tokenizer at hand.

        Raises:
            ValueError: neither the recipe nor the caller says the proxy vocabulary.
        """
        ship, proxy = self.config.ship, self.config.proxy
        width, vocab = (
            (ship.d_model, ship.vocab_size)
            if scale == "ship"
            else (proxy.d_model, proxy.vocab_size)
        )
        if vocab_size is None:
            vocab_size = vocab
        if vocab_size is None:
            raise ValueError("the proxy vocabulary is not known; give vocab_size")
        return StackSpec(
            d_model=width,
            vocab_size=vocab_size,
            tie_embeddings=ship.tie_embeddings,
            blocks=tuple(self._block_spec(genome, block) for block in genome.blocks),
        )

    def from_spec(self, spec: StackSpec) -> Genome:
        """The genome with a spec's layout, genes and sharing; widths and the free gene are ours.

        Raises:
            UserError: the layout or a setting is not in this space (says which), or the parameter
                budget is out of its reach.
        """
        return encoding.from_spec(self, spec)

    def from_layout(self, layout: Sequence[str]) -> Genome:
        """The genome with these mixers by block and the first listed value of every gene.

        Raises:
            UserError: as `from_spec`.
        """
        return encoding.from_layout(self, layout)

    # --- what a genome means ------------------------------------------------------------------

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

    def may_share(self, mixer: str, field: str) -> bool:
        """Whether blocks of a mixer may use `weights_from` or `state_from`."""
        if field == "weights_from":
            return self.config.sharing.weights
        return self.config.sharing.state and self.families[mixer].shareable

    def is_free(self, name: str, gene: str) -> bool:
        """Whether repair, not variation, sets this gene."""
        return self.free_gene == (name, gene)

    # --- the space as a whole -----------------------------------------------------------------

    def check_sequence_length(self, num_tokens: int) -> None:
        """Refuse proxy sequences in which the largest window is hardly left.

        Raises:
            UserError: shorter than 4 times the largest window of any family.
        """
        for family in self.families.values():
            need = WINDOWS_PER_SEQUENCE * family.window
            if num_tokens < need:
                raise UserError(
                    f"proxy sequences of {num_tokens} tokens are shorter than "
                    f"{WINDOWS_PER_SEQUENCE} x {family.name}.window={family.window}; train on at "
                    f"least {need} tokens or list smaller windows"
                )

    @cached_property
    def size(self) -> int:
        """How many genomes differ, sharing and the free gene aside: an upper bound on the specs."""
        once: int = math.prod(len(values) for values in self.global_genes.values())
        for genes in self.family_genes.values():
            once *= math.prod(len(values) for values in genes.values())
        block: int = math.prod(
            sum(self._block_choices(name) for name in names)
            for names in (self.mixers, self.channel_mixers)
        )
        rules_ = self.config.interleaving
        depths = list(self.config.num_blocks)
        if rules_.rule == "free":
            lengths = depths
        else:
            periods = range(rules_.period[0], rules_.period[1] + 1)
            lengths = [period for depth in depths for period in periods if period <= depth]
        return once * sum(int(block**length) for length in lengths)

    def describe(self) -> str:
        """The space in a few lines of plain words."""
        config = self.config
        depths = " or ".join(map(str, config.num_blocks))
        lines = [f"{depths} blocks, d_model {config.ship.d_model} (proxy {config.proxy.d_model})"]
        for family in self.families.values():
            genes = "; ".join(
                f"{gene} {'|'.join(map(str, values))} ({family.scopes[gene]})"
                for gene, values in family.genes.items()
            )
            lines.append(f"{family.name}: {genes or 'no searched genes'}")
        lines.append(f"about {self.size:.2g} layouts")
        return "\n".join(lines)

    def summary(self, genome: Genome) -> dict[str, int]:
        """A few numbers per genome, the same keys for all: what importance analysis looks at."""
        blocks = genome.blocks
        counts = {f"num_{name}": genome.layout.count(name) for name in self.mixers}
        return {
            "num_blocks": len(blocks),
            **counts,
            "num_sharing": sum(block.source is not None for block in blocks),
        }

    # --- inside -------------------------------------------------------------------------------

    def _block_choices(self, name: str) -> int:
        family = self.families[name]
        searched = [g for g in family.scoped("block") if not self.is_free(name, g)]
        return math.prod(len(family.genes[gene]) for gene in searched)

    def _block_spec(self, genome: Genome, block: BlockGenes) -> BlockSpec:
        mixer, channel = self.families[block.mixer], self.families[block.channel_mixer]
        return BlockSpec(
            mixers=(
                MixerSpec(
                    name=mixer.name,
                    config={**mixer.fixed, **self.values(genome, mixer.name, block.genes)},
                    weights_from=block.weights_from,
                    state_from=block.state_from,
                ),
            ),
            channel_mixer=ChannelMixerSpec(
                name=channel.name,
                config={
                    **channel.fixed,
                    **self.values(genome, channel.name, block.channel_genes),
                },
            ),
        )

    def _check_block(self, where: str, block: BlockGenes) -> None:
        slots: list[tuple[Kind, str, Genes]] = [
            ("mixers", block.mixer, block.genes),
            ("channel_mixers", block.channel_mixer, block.channel_genes),
        ]
        for kind, name, genes in slots:
            family = self.families.get(name)
            if family is None or family.kind != kind:
                known = self.mixers if kind == "mixers" else self.channel_mixers
                raise UserError(
                    f"{where}: {name!r} is not in space.{kind}; {registry.suggest(name, known)}"
                )
            allowed = {gene: family.genes[gene] for gene in family.scoped("block")}
            self._check_genes(f"{where}.{name}", genes, allowed)

    def _check_genes(
        self, where: str, given: Genes, allowed: dict[str, tuple[Scalar, ...]]
    ) -> None:
        if given.keys() != allowed.keys():
            raise UserError(f"{where}: genes {sorted(given)}, the space has {sorted(allowed)}")
        for gene, value in given.items():
            if value not in allowed[gene]:
                raise UserError(f"{where}.{gene}={value!r}: allowed are {list(allowed[gene])}")

    def _free(self) -> tuple[tuple[str, str] | None, tuple[Scalar, ...]]:
        """The budget's free gene and its grid by ascending parameters."""
        budget = self.config.budget
        if budget is None:
            return None, ()
        key = f"space.budget.free={budget.free!r}"
        name, _, gene = budget.free.partition(".")
        if name not in self.channel_mixers:
            near = registry.suggest(name, self.channel_mixers)
            raise UserError(f"{key}: {name!r} is not in space.channel_mixers; {near}")
        family = self.families[name]
        if gene not in family.genes and gene not in family.fixed:
            raise UserError(
                f"{key}: list the values that {gene or 'the gene'} may take under "
                f"space.channel_mixers.{name}"
            )
        if gene in family.fixed:
            return None, ()
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
        first = next(family.combinations())
        width = self.config.ship.d_model

        def num_params(value: Scalar) -> int:
            count: int = family.config({**first, gene: value}).num_params(width)
            return count

        return (name, gene), tuple(sorted(grid, key=num_params))

    def _check_reachable(self) -> None:
        try:
            self.sample(np.random.default_rng(0))
        except OutOfReachError as error:
            assert self.config.budget is not None
            raise UserError(
                f"space.budget.num_params={self.config.budget.num_params:,}: no spec meets it "
                f"({error}); change the number, the widths or the values of "
                f"{self.config.budget.free}"
            ) from error


__all__ = ["OutOfReachError", "Space", "SpaceConfig"]
