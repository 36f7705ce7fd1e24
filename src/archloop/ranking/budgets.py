"""Budgets: hard limits on measured figures, and what a measurement says of each of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from archloop.errors import UserError
from archloop.profiling.record import Interval, Profile
from archloop.profiling.statistics import t_quantile
from archloop.ranking import looks
from archloop.ranking.estimate import CONFIDENCE, Estimate
from archloop.ranking.estimates import estimate
from archloop.ranking.record import BrokenBudget, Readings
from archloop.ranking.variance import Pool

Metric = Literal["ttft_ms", "decode_p50_ms", "decode_p95_ms", "peak_memory_bytes"]


class Budget(BaseModel):
    """A hard limit on a measured figure.

    Attributes:
        metric: a field of `Figures` of which less is better.
        limit: largest allowed value, in the metric's unit, or a ratio if `relative`.
        relative: the limit is a ratio to the reference preset.
        context: where it holds; at every profiled context if None.
        target: where it holds; on every target if None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric
    limit: Annotated[float, Field(gt=0)]
    relative: bool = False
    context: Annotated[int, Field(ge=1)] | None = None
    target: str | None = None

    def __str__(self) -> str:
        unit = " x reference" if self.relative else ""
        where = "" if self.context is None else f" at {self.context}"
        where += "" if self.target is None else f" on {self.target}"
        return f"{self.metric} <= {self.limit:g}{unit}{where}"


class Limited(NamedTuple):
    """What a budget limits: one figure, on one target, at one context.

    Attributes:
        logs: readings of the logarithm of the figure, one a process.
    """

    budget: Budget
    target: str
    context: int
    logs: Readings

    @property
    def name(self) -> str:
        """What tells this figure from others: all trials' readings of it have one noise."""
        ratio = "/reference" if self.budget.relative else ""
        return f"{self.budget.metric}{ratio} at {self.context} on {self.target}"


class Judgement(NamedTuple):
    """What a look at the device says of all budgets.

    Attributes:
        decision: of the look.
        broken: budgets that the estimate exceeds, if the decision is that one is broken.
        straddles: budgets that the 95% interval still contains, in words.
    """

    decision: looks.Decision
    broken: tuple[BrokenBudget, ...]
    straddles: tuple[str, ...]


def check_budgets(
    budgets: Sequence[Budget], contexts: Mapping[str, Sequence[int]], reference: bool
) -> None:
    """Every budget limits something that the study measures.

    Args:
        budgets: of a recipe.
        contexts: measured on each target, by its name.
        reference: there is a reference preset.

    Raises:
        UserError: an unknown target or context, or a ratio without a reference preset.
    """
    for index, budget in enumerate(budgets):
        where = f"budgets[{index}]"
        if budget.target is not None and budget.target not in contexts:
            raise UserError(f"{where}.target={budget.target!r}: give one of {list(contexts)}")
        chosen = contexts if budget.target is None else {budget.target: contexts[budget.target]}
        profiled = sorted({context for each in chosen.values() for context in each})
        if budget.context is not None and budget.context not in profiled:
            known = f"give one that is profiled: {profiled}"
            raise UserError(f"{where}.context={budget.context}: {known}")
        if budget.relative and not reference:
            raise UserError(f"{where}.relative: name a reference preset, or give absolute limits")


def limits_any(budget: Budget, contexts: Mapping[str, Sequence[int]]) -> bool:
    """Whether a budget limits anything that is measured, of contexts by target."""
    own = contexts if budget.target is None else {budget.target: contexts.get(budget.target, ())}
    return any(budget.context is None or budget.context in each for each in own.values() if each)


def limited(profiles: Mapping[str, Profile], budgets: Sequence[Budget]) -> list[Limited]:
    """All that the budgets limit, of profiles by target."""
    return [
        Limited(budget, target, context, log_readings(interval, profile.num_processes))
        for budget in budgets
        for target, profile in profiles.items()
        if budget.target in (None, target)
        for context, interval in _figures(profile, budget).items()
        if budget.context in (None, context)
    ]


def log_readings(interval: Interval, num_processes: int) -> Readings:
    """Readings of a logarithm, from the t-interval that a profile has of the figure itself."""
    half = math.log(interval.high / interval.low) / 2
    se = half / t_quantile(0.5 + CONFIDENCE / 2, num_processes - 1)
    return Readings(
        mean=math.log(interval.value), sd=se * math.sqrt(num_processes), n=num_processes
    )


def judged(
    figures: Sequence[Limited], pools: Mapping[str, Pool], look: int, num_looks: int
) -> Judgement:
    """What the budgets' figures say after a look.

    Args:
        figures: all that is limited.
        pools: the noise of each figure by its name, over all trials.
        look: 1 for the first.
        num_looks: after which the estimates decide.
    """
    logs = [estimate(figure.logs, pools[figure.name]) for figure in figures]
    over = [
        log.model_copy(update={"mean": log.mean - math.log(figure.budget.limit)})
        for figure, log in zip(figures, logs, strict=True)
    ]
    decision = looks.decide(over, look, num_looks)
    pairs = list(zip(figures, logs, strict=True))
    return Judgement(
        decision,
        tuple(_broken(*pair) for pair in pairs if pair[1].mean > math.log(pair[0].budget.limit))
        if decision == "broken"
        else (),
        tuple(filter(None, (_straddling(*pair) for pair in pairs))),
    )


def excess(broken_budgets: Sequence[BrokenBudget]) -> float:
    """Constraint excess: by how much the limits are exceeded, relative to each, summed."""
    return sum(b.value / b.limit - 1 for b in broken_budgets)


def _broken(figure: Limited, log: Estimate) -> BrokenBudget:
    return BrokenBudget(
        metric=figure.budget.metric,
        context=figure.context,
        target=figure.target,
        relative=figure.budget.relative,
        limit=figure.budget.limit,
        value=math.exp(log.mean),
        low=math.exp(log.interval()[0]),
    )


def _straddling(figure: Limited, log: Estimate) -> str | None:
    """The figure in words if its interval contains the limit."""
    low, high = (math.exp(end) for end in log.interval())
    limit = figure.budget.limit
    if not low <= limit < high:
        return None
    return f"{figure.name}: {math.exp(log.mean):.4g} [{low:.4g}, {high:.4g}] around {limit:g}"


def _figures(profile: Profile, budget: Budget) -> dict[int, Interval]:
    """The figure that a budget limits, by context."""
    if not budget.relative:
        return {f.context: getattr(f, budget.metric) for f in profile.figures}
    if not profile.ratios:
        raise ValueError(f"{budget}: the profile has no ratios to a reference")
    return {int(context): ratios[budget.metric] for context, ratios in profile.ratios.items()}
