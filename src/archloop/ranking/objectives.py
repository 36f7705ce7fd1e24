"""From measurements and scores to objectives, budgets and the reference point.

Pure functions of records, so that a report can recompute all of them from the store.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from archloop.errors import UserError
from archloop.evals.base import Score
from archloop.profiling.record import Interval, Profile
from archloop.ranking.record import BrokenBudget, Objectives

MIN_SIGNAL = 3.0
"""Standard errors above chance that the reference preset must reach for a task to count."""
DEFAULT_BOUND = 1.5
"""Reference point in latency and memory, as ratios to the reference preset."""
NORMAL_95 = 1.959964
"""Half-width of a 95% interval in standard errors."""

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


class Reading(NamedTuple):
    """What a budget limits: one figure, on one target, at one context."""

    budget: Budget
    target: str
    context: int
    interval: Interval


# --- budgets ------------------------------------------------------------------------------------


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


def readings(profiles: Mapping[str, Profile], budgets: Sequence[Budget]) -> list[Reading]:
    """All that the budgets limit, of profiles by target."""
    found = []
    for budget in budgets:
        for target, profile in profiles.items():
            if budget.target in (None, target):
                found += [
                    Reading(budget, target, context, interval)
                    for context, interval in _figures(profile, budget).items()
                    if budget.context in (None, context)
                ]
    return found


def broken(profiles: Mapping[str, Profile], budgets: Sequence[Budget]) -> tuple[BrokenBudget, ...]:
    """Budgets that are exceeded beyond doubt: the interval's lower bound is above the limit."""
    return tuple(
        BrokenBudget(
            metric=budget.metric,
            context=context,
            target=target,
            relative=budget.relative,
            limit=budget.limit,
            value=interval.value,
            low=interval.low,
        )
        for budget, target, context, interval in readings(profiles, budgets)
        if interval.low > budget.limit
    )


def straddles(profiles: Mapping[str, Profile], budgets: Sequence[Budget]) -> tuple[str, ...]:
    """Budgets that the interval still contains, in words."""
    return tuple(
        f"{budget.metric} at {context} on {target}: {interval.value:.4g} "
        f"[{interval.low:.4g}, {interval.high:.4g}] around {budget.limit:g}"
        for budget, target, context, interval in readings(profiles, budgets)
        if interval.low <= budget.limit < interval.high
    )


def excess(broken_budgets: Sequence[BrokenBudget]) -> float:
    """Constraint excess: by how much the limits are exceeded, relative to each, summed."""
    return sum(b.value / b.limit - 1 for b in broken_budgets)


# --- quality ------------------------------------------------------------------------------------


def admitted(reference: Mapping[str, Score]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Tasks that carry signal, by the reference preset's scores, and why the others do not."""
    kept, dropped = [], {}
    for task, score in reference.items():
        if score.signal >= MIN_SIGNAL:
            kept.append(task)
        else:
            dropped[task] = (
                f"reference scores {score.value:.4g}, {score.signal:.1f} standard errors above "
                f"chance ({score.chance:.4g}); {MIN_SIGNAL:g} are needed"
            )
    return tuple(kept), dropped


def quality(scores: Mapping[str, Score], tasks: Sequence[str]) -> tuple[float, float]:
    """Aggregate and standard error: mean over categories of the mean over their tasks.

    Each score is normalised, 0 at chance and 1 at perfect.

    Args:
        scores: by task.
        tasks: the admitted ones.

    Raises:
        ValueError: no task is admitted, or one was not scored.
    """
    if not tasks:
        raise ValueError("no task carries signal; train the proxy longer or name easier tasks")
    missing = [task for task in tasks if task not in scores]
    if missing:
        raise ValueError(f"no score for {', '.join(missing)}")
    categories: dict[str, list[Score]] = {}
    for task in tasks:
        categories.setdefault(scores[task].category, []).append(scores[task])
    total, variance = 0.0, 0.0
    for members in categories.values():
        weight = 1 / (len(categories) * len(members))
        for score in members:
            total += weight * score.normalized
            span = abs(score.perfect - score.chance)
            variance += (weight * score.standard_error / span) ** 2
    return total, math.sqrt(variance)


# --- objectives ---------------------------------------------------------------------------------


def objectives(
    profiles: Mapping[str, Profile],
    scores: Mapping[str, Score],
    tasks: Sequence[str],
    seed_se: float = 0.0,
) -> Objectives:
    """Quality, latency and memory of a trial with their standard errors.

    Args:
        profiles: by target, each with ratios to the reference.
        scores: by task.
        tasks: the admitted ones.
        seed_se: standard error of quality over training seeds, added to that over examples.

    Raises:
        ValueError: as `quality`, or a profile has no ratio to the reference.
    """
    value, example_se = quality(scores, tasks)
    latency = _worst(profiles, "latency")
    memory = _worst(profiles, "memory")
    return Objectives(
        quality=value,
        latency=latency.value,
        memory=memory.value,
        quality_se=math.hypot(example_se, seed_se),
        latency_se=standard_error(latency),
        memory_se=standard_error(memory),
    )


def standard_error(interval: Interval) -> float:
    """Of a positive ratio whose 95% interval is symmetric in the logarithm.

    The interval is read as a normal one: with few processes a little on the wide side.
    """
    if interval.low <= 0:
        return (interval.high - interval.low) / (2 * NORMAL_95)
    return interval.value * math.log(interval.high / interval.low) / (2 * NORMAL_95)


def as_point(values: Objectives) -> tuple[float, float, float]:
    """For `ranking.front`, where less is better: quality negated, latency, memory."""
    return -values.quality, values.latency, values.memory


def noise(values: Objectives) -> tuple[float, float, float]:
    """Standard errors in the order of `as_point`."""
    return values.quality_se, values.latency_se, values.memory_se


def reference_point(reference: Mapping[str, Profile], budgets: Sequence[Budget] = ()) -> Objectives:
    """The worst objectives that count, fixed before trial 0.

    Quality: chance. Latency and memory: what the budgets allow, where they limit the objective on
    every target and at every context; otherwise 1.5 times the reference preset.

    Args:
        reference: the reference preset's profiles by target.
        budgets: of the study.
    """
    latencies = [_latency_bound(profile, target, budgets) for target, profile in reference.items()]
    memories = [_memory_bound(profile, target, budgets) for target, profile in reference.items()]
    return Objectives(quality=0.0, latency=_largest(latencies), memory=_largest(memories))


# --- inside -------------------------------------------------------------------------------------


def _figures(profile: Profile, budget: Budget) -> dict[int, Interval]:
    """The figure that a budget limits, by context."""
    if not budget.relative:
        return {f.context: getattr(f, budget.metric) for f in profile.figures}
    if not profile.ratios:
        raise ValueError(f"{budget}: the profile has no ratios to a reference")
    return {int(context): ratios[budget.metric] for context, ratios in profile.ratios.items()}


def _worst(profiles: Mapping[str, Profile], objective: Literal["latency", "memory"]) -> Interval:
    """The largest ratio over targets."""
    intervals: list[Interval] = []
    for target, profile in profiles.items():
        interval: Interval | None = getattr(profile, objective)
        if interval is None:
            raise ValueError(f"the profile on {target} has no {objective} ratio to a reference")
        intervals.append(interval)
    if not intervals:
        raise ValueError(f"no profile to take {objective} from")
    return max(intervals, key=lambda interval: interval.value)


def _limit(
    budgets: Sequence[Budget], metrics: Sequence[str], target: str, context: int, gross: float
) -> float | None:
    """The tightest limit on any of the metrics, absolute; `gross` is the reference's value."""
    limits = [
        budget.limit * gross if budget.relative else budget.limit
        for budget in budgets
        if budget.metric in metrics
        and budget.target in (None, target)
        and budget.context in (None, context)
    ]
    return min(limits, default=None)


def _latency_bound(profile: Profile, target: str, budgets: Sequence[Budget]) -> float | None:
    """Largest latency ratio within the budgets; None if some context is not limited."""
    logs = []
    num_steps = profile.identity.decode_tokens
    for figures in profile.figures:
        at = (target, figures.context)
        ttft = _limit(budgets, ["ttft_ms"], *at, figures.ttft_ms.value)
        # A limit on p95 limits the median too.
        steps = [
            _limit(budgets, [metric], *at, getattr(figures, metric).value)
            for metric in ("decode_p50_ms", "decode_p95_ms")
        ]
        step = min((s for s in steps if s is not None), default=None)
        if ttft is None or step is None:
            return None
        own = figures.ttft_ms.value + num_steps * figures.decode_p50_ms.value
        logs.append(math.log((ttft + num_steps * step) / own))
    return math.exp(math.fsum(logs) / len(logs))


def _memory_bound(profile: Profile, target: str, budgets: Sequence[Budget]) -> float | None:
    """Largest memory ratio within the budgets; None if some context is not limited."""
    bounds = []
    for figures in profile.figures:
        peak, baseline = figures.peak_memory_bytes.value, figures.baseline_memory_bytes.value
        limit = _limit(budgets, ["peak_memory_bytes"], target, figures.context, peak)
        if limit is None:
            return None
        bounds.append((limit - baseline) / (peak - baseline))
    return max(bounds)


def _largest(bounds: Sequence[float | None]) -> float:
    """Over targets; the default unless each has a usable bound."""
    known = [bound for bound in bounds if bound is not None and bound > 0]
    return max(known) if known and len(known) == len(bounds) else DEFAULT_BOUND
