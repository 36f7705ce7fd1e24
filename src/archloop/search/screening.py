"""Screening: proposals that tables of measured blocks rule out are not measured.

1. Each of the recipe's tables is read, and the rows of one device, engine and quantisation taken.
2. The budgets of the target of that name, and the table's own, become limits on estimates.
3. A proposal whose estimate exceeds a limit by more than the table's slack is drawn again.

An estimate only ever says that a stack is not worth measuring. What a study tells, ranks and puts
on a front are measurements of those that were left.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from archloop.errors import UserError
from archloop.profiling.block_table import BlockTable, Where, read_table
from archloop.profiling.predictor import Prediction, Predictor
from archloop.profiling.target import Target
from archloop.ranking.budgets import Budget
from archloop.runtimes import pieces
from archloop.search.base import Strategy
from archloop.search.recipe.recipe import Recipe
from archloop.search.recipe.tables import TableSection
from archloop.space.genome import Genome
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.space.variation import sample
from archloop.stack.spec import StackSpec

NUM_DRAWS = 1000
"""Draws of the prior that a plan screens."""
PATIENCE = 5000
"""Random genomes in a row that may be ruled out: estimates are cheap, and budgets may be tight."""
_ESTIMATES = {
    "ttft_ms": "prefill_ms_estimate",
    "decode_p50_ms": "decode_ms_estimate",
    "peak_memory_bytes": "peak_memory_bytes_estimate",
}
"""By metric of a budget, the field of a prediction."""

_log = logging.getLogger(__name__)


class Limit(NamedTuple):
    """What an estimate is held to.

    Attributes:
        budget: that says so.
        context: where.
        largest: value that is not ruled out yet, in the metric's unit.
    """

    budget: Budget
    context: int
    largest: float


class Screened(NamedTuple):
    """One of the recipe's tables, ready to rule stacks out.

    Attributes:
        where: its rows are from.
        num_rows: of them.
        predictors: by context.
        limits: on estimates.
    """

    where: Where
    num_rows: int
    predictors: Mapping[int, Predictor]
    limits: tuple[Limit, ...]

    def obstacle(self, spec: StackSpec) -> str | None:
        """The first limit that a stack is estimated to exceed; None if it exceeds none.

        A stack that is no sum of pieces, or has one like which nothing was measured, is left to the
        measurement.
        """
        found: dict[int, Prediction] = {}
        for limit in self.limits:
            try:
                if limit.context not in found:
                    found[limit.context] = self.predictors[limit.context].predict(spec)
            except UserError:
                return None
            value = _estimate(found[limit.context], limit.budget)
            if value > limit.largest:
                return f"{limit.budget} at {limit.context}: {value:.4g} estimated"
        return None


class Screen:
    """All tables of a recipe.

    Args:
        tables: by their names in the recipe.

    Attributes:
        tables: likewise.
        num_ruled_out: proposals that a table ruled out so far.
    """

    def __init__(self, tables: Mapping[str, Screened]) -> None:
        self.tables, self.num_ruled_out = tables, 0

    def obstacle(self, spec: StackSpec) -> str | None:
        """Why a stack is not worth measuring, or None."""
        for name, table in self.tables.items():
            if (reason := table.obstacle(spec)) is not None:
                return f"tables.{name}: {reason}"
        return None

    def hold(self, strategy: Strategy, space: Space) -> None:
        """Have a strategy propose nothing that is ruled out; layouts to try first are tried."""
        before, first = strategy.allows, strategy.initial

        def allows(genome: Genome) -> bool:
            if before is not None and not before(genome):
                return False
            if genome in first:
                return True
            # Not remembered: thousands may be drawn for a proposal, none of which comes again.
            is_out = self.obstacle(to_spec(space, genome, "ship")) is not None
            self.num_ruled_out += is_out
            return not is_out

        strategy.allows, strategy.patience = allows, PATIENCE


def shares_kept(screen: Screen, space: Space, seed: int) -> dict[str, float]:
    """By table, the share of draws of the prior that it does not rule out."""
    rng = np.random.default_rng(seed)
    specs = [to_spec(space, sample(space, rng), "ship") for _ in range(NUM_DRAWS)]
    return {
        name: sum(table.obstacle(spec) is None for spec in specs) / len(specs)
        for name, table in screen.tables.items()
    }


def read(recipe: Recipe, reference: StackSpec) -> Screen | None:
    """The recipe's tables; None where it has none.

    Raises:
        UserError: a file is missing or damaged, its rows are of several devices, of graphs that
            different code exported or of nothing that was asked for, or nothing of it is limited.
    """
    tables = {}
    for name, section in recipe.tables.items():
        try:
            target = recipe.targets.get(name)
            budgets = [*section.budgets]
            if target is not None:
                budgets += [b for b in recipe.budgets if b.target in (None, name)]
            tables[name] = _screened(recipe, section, target, budgets, reference)
        except UserError as error:
            raise UserError(f"tables.{name}: {error}") from error
        if (doubt := tables[name].where.doubt) is not None:
            _log.warning("tables.%s: %s", name, doubt)
    return Screen(tables) if tables else None


def _screened(
    recipe: Recipe,
    section: TableSection,
    target: Target | None,
    budgets: Iterable[Budget],
    reference: StackSpec,
) -> Screened:
    first, *others = (read_table(recipe.root / file) for file in section.files)
    table = first.joined(others)
    where = _where(table, section, target)
    rows = [row for row in table.rows if row.where == where]
    contexts = sorted({row.context for row in rows})
    if target is not None:
        contexts = [context for context in contexts if context in target.contexts]
    predictors = {context: Predictor(table, where, context) for context in contexts}
    limits = [
        Limit(budget, context, (1 + section.slack) * _limit(budget, predictors[context], reference))
        for budget in budgets
        if budget.metric in _ESTIMATES
        for context in contexts
        if budget.context in (None, context)
    ]
    if not limits:
        raise UserError(
            f"nothing is limited at its contexts {contexts}; give it budgets, or the target of its "
            "name"
        )
    return Screened(where, len(rows), predictors, tuple(limits))


def _limit(budget: Budget, predictor: Predictor, reference: StackSpec) -> float:
    """A budget's limit in the metric's unit: of a ratio, by the reference's own estimate."""
    if not budget.relative:
        return budget.limit
    if reason := pieces.inseparable(reference):
        raise UserError(f"{budget}: the reference preset cannot be estimated: {reason}")
    return budget.limit * _estimate(predictor.predict(reference), budget)


def _estimate(prediction: Prediction, budget: Budget) -> float:
    return float(getattr(prediction, _ESTIMATES[budget.metric]))


def _where(table: BlockTable, section: TableSection, target: Target | None) -> Where:
    """The one place whose rows count."""
    says = section if target is None else target
    asked = {name: getattr(says, name) for name in ("runtime", "quant", "threads")}
    asked["device"] = section.device
    wanted = {name: value for name, value in asked.items() if value is not None}
    found = dict.fromkeys(row.where for row in table.rows)
    fitting = [w for w in found if all(getattr(w, n) == v for n, v in wanted.items())]
    if len(fitting) == 1:
        return fitting[0]
    if len({where.model_copy(update={"written_by": None}) for where in fitting}) == 1:
        # Nothing that the recipe can say tells these apart, and they must not be fitted together.
        writers = " and by ".join(where.written_by or "code that is not known" for where in fitting)
        raise UserError(
            f"rows of graphs that different code exported, by {writers}; name files of one alone, "
            "or measure again with `archloop blocks`"
        )
    there = "; ".join(
        f"{w.device}, {w.runtime} {w.runtime_version} {w.quant}, {w.threads} threads"
        for w in fitting or found
    )
    if not fitting:
        asked_for = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise UserError(f"no rows of {asked_for}; there are those of {there or 'nothing'}")
    raise UserError(f"rows of several: {there}; say device, runtime, quant or threads")
