"""From measurements and scores to objectives, budgets and the reference point.

Pure functions of records, so that a report can recompute all of them from the store.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from archloop.evals.base import Score
from archloop.profiling.record import Figures, Interval, Profile
from archloop.profiling.statistics import t_quantile
from archloop.ranking.anchors import Scale
from archloop.ranking.budgets import Budget, log_readings
from archloop.ranking.estimate import CONFIDENCE
from archloop.ranking.record import QUALITY, Objective, Objectives, Readings

DEFAULT_BOUND = 1.5
"""Reference point in latency and memory, as ratios to the reference preset."""
OBJECTIVES = (
    Objective(name="quality", direction="maximize"),
    Objective(name="latency", direction="minimize"),
    Objective(name="memory", direction="minimize"),
)
"""What is optimised unless a recipe says otherwise."""
MEASURED = (
    "latency",
    "memory",
    *(name for name in Figures.model_fields if name not in ("context", "engine_empty_bytes")),
)
"""Figures of a device that can be an objective: whatever a measurement has is one."""

# --- objectives ---------------------------------------------------------------------------------


def readable(wanted: Sequence[Objective], scale: Scale | None) -> tuple[Objective, ...]:
    """The objectives that a study can read: without a scale of quality, those of devices alone."""
    return tuple(each for each in wanted if scale is not None or each.category is None)


def has_contexts(figure: str) -> bool:
    """Whether a figure is known at each context, so that the worst of them can be asked for.

    A profile has the latency of requests over all contexts, and a score has no context. Of what
    nobody knows nothing is said here.
    """
    return figure != "latency" and figure.partition(":")[0] != QUALITY


def objectives(
    profiles: Mapping[str, Profile],
    scored: Mapping[str, Readings],
    wanted: Sequence[Objective] = OBJECTIVES,
) -> Objectives:
    """What is read of a trial, by objective in the order in which they are wanted.

    Args:
        profiles: by target, each with ratios to the reference.
        scored: the objectives of scores, over trainings (`of_scores`).
        wanted: the study's objectives.

    Raises:
        ValueError: a profile has no ratio to the reference.
    """
    found = {**scored, **device(profiles, wanted)}
    return Objectives(values={objective.name: found[objective.name] for objective in wanted})


def of_scores(
    scale: Scale,
    trainings: Sequence[Mapping[str, Score]],
    wanted: Sequence[Objective] = OBJECTIVES,
) -> dict[str, Readings]:
    """The objectives of scores, each read once a training.

    The standard error of quality over examples is left out: the examples are the same for all
    trials, so that it is no part of how stacks differ.

    Args:
        scale: how scores become quality.
        trainings: scores by name, of each.
        wanted: the study's objectives.

    Raises:
        ValueError: a score that counts is missing, or none of a category counts.
    """
    found = {}
    for objective in wanted:
        if objective.category is not None:
            values = [_score(scale, scores, objective.category) for scores in trainings]
            found[objective.name] = readings(values)
    return found


def without_skill(wanted: Sequence[Objective] = OBJECTIVES) -> dict[str, Readings]:
    """As `of_scores`, of a training that diverged: it is worth what no skill at all is."""
    return {each.name: readings([0.0]) for each in wanted if each.category is not None}


def device(
    profiles: Mapping[str, Profile], wanted: Sequence[Objective] = OBJECTIVES
) -> dict[str, Readings]:
    """The objectives that are measured, each the worst ratio over targets (`_worst`)."""
    found: dict[str, Readings] = {}
    for objective in wanted:
        if objective.category is None:
            found[objective.name] = _worst(profiles, objective)
    return found


def of_reference(
    scored: Mapping[str, Readings], wanted: Sequence[Objective] = OBJECTIVES
) -> Objectives:
    """Of the reference run: its ratios to itself are 1 by definition, its scores were read.

    Args:
        scored: the objectives of its scores.
        wanted: the study's objectives.
    """
    one = Readings(mean=1.0, n=0)
    return Objectives(values={each.name: scored.get(each.name, one) for each in wanted})


def readings(values: Sequence[float]) -> Readings:
    """Of independent values, at least one."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Readings(mean=mean)
    square = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Readings(mean=mean, sd=math.sqrt(square), n=count)


def as_point(values: Objectives, objectives: Sequence[Objective] = OBJECTIVES) -> tuple[float, ...]:
    """For `ranking.front`, where less is better: what is maximised negated."""
    return tuple(
        -values.mean(o.name) if o.direction == "maximize" else values.mean(o.name)
        for o in objectives
    )


def reference_point(
    reference: Mapping[str, Profile],
    budgets: Sequence[Budget] = (),
    wanted: Sequence[Objective] = OBJECTIVES,
) -> Objectives:
    """The worst objectives that count, fixed before trial 0.

    Of scores: those of a stack which lacks every skill. Latency and memory: what the budgets allow,
    where they limit the objective on every target and at every context; otherwise, and of every
    other metric, 1.5 times the reference preset (or 1 / 1.5 of it, where more is better).

    Args:
        reference: the reference preset's profiles by target.
        budgets: of the study.
        wanted: the study's objectives.
    """
    bounds = {"latency": _latency_bound, "memory": _memory_bound}
    worst = {}
    for objective in wanted:
        bound = DEFAULT_BOUND if objective.direction == "minimize" else 1 / DEFAULT_BOUND
        if objective.category is not None:
            bound = 0.0
        elif objective.of in bounds:
            limit = bounds[objective.of]
            bound = _largest([limit(each, name, budgets) for name, each in reference.items()])
        worst[objective.name] = Readings(mean=bound, n=0)
    return Objectives(values=worst)


# --- inside -------------------------------------------------------------------------------------


def _score(scale: Scale, scores: Mapping[str, Score], category: str) -> float:
    """Quality, or what one category adds to it, in standard deviations over the anchor stacks."""
    if not category:
        return scale.quality(scores)
    found = scale.categories(scores)
    if category not in found:
        raise ValueError(f"no score of category {category!r} counts; those that do: {list(found)}")
    return found[category] / scale.spreads[category]


def _worst(profiles: Mapping[str, Profile], objective: Objective) -> Readings:
    """The worst ratio over targets, with the noise of not knowing which target that is.

    The largest of several noisy ratios was unlucky on average: of ten equal ones it lies one and a
    half standard errors too high, and its own 95% interval lies wholly above the truth in more than
    a fifth of the cases. So its interval reaches as far down as intervals that hold for all targets
    at once, and as far up as the interval of any target does; with one target it is its own. The
    quantiles are the normal distribution's: how well noise is known is the business of the pool
    over all stacks.
    """
    if not profiles:
        raise ValueError(f"no profile to take {objective.name} from")
    sign = 1 if objective.direction == "minimize" else -1
    ratios = [
        (_ratio(profile, target, objective), profile.processes_behind(objective.of))
        for target, profile in profiles.items()
    ]
    logs = [log_readings(*pair) for pair in ratios]
    # Logarithms and standard errors; the larger a logarithm, the worse.
    known = [(sign * each.mean, (each.sd or 0.0) / math.sqrt(each.n)) for each in logs]
    worst = max(range(len(known)), key=lambda i: known[i][0])
    own, all_of_them = _one_sided(1), _one_sided(len(known))
    above = max(log + own * se - known[worst][0] for log, se in known)
    mean, num_processes = ratios[worst][0].value, logs[worst].n
    sd = max(all_of_them * known[worst][1], above) / own * math.sqrt(num_processes)
    return Readings(mean=mean, sd=mean * sd, n=num_processes)


def _one_sided(count: int) -> float:
    """Standard errors by which, in 97.5% of cases, none of so many readings is too high."""
    return t_quantile((0.5 + CONFIDENCE / 2) ** (1 / count), None)


def _ratio(profile: Profile, target: str, objective: Objective) -> Interval:
    """To the reference on one target, over contexts."""
    missing = f"the profile on {target} has no {objective.of} ratio to a reference"
    if objective.of in ("latency", "memory"):
        whole: Interval | None = getattr(profile, f"{objective.of}_ratio")
        if whole is None:
            raise ValueError(missing)
        return whole
    ratios = [by_name.get(objective.of) for by_name in profile.ratios.values()]
    known = [ratio for ratio in ratios if ratio is not None]
    if not known or len(known) < len(ratios):
        raise ValueError(missing)
    if objective.contexts == "worst":
        worst = max if objective.direction == "minimize" else min
        return worst(known, key=lambda ratio: ratio.value)
    # The same processes are behind every context, so their noise does not average out.
    ends = ([getattr(r, end) for r in known] for end in ("value", "low", "high"))
    value, low, high = (statistics.geometric_mean(each) for each in ends)
    return Interval(value=value, low=low, high=high)


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
        peak, empty = figures.peak_memory_bytes.value, figures.engine_empty_bytes.value
        limit = _limit(budgets, ["peak_memory_bytes"], target, figures.context, peak)
        if limit is None:
            return None
        bounds.append((limit - empty) / (peak - empty))
    return max(bounds)


def _largest(bounds: Sequence[float | None]) -> float:
    """Over targets; the default unless each has a usable bound."""
    known = [bound for bound in bounds if bound is not None and bound > 0]
    return max(known) if known and len(known) == len(bounds) else DEFAULT_BOUND
