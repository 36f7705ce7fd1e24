"""From measurements and scores to objectives, budgets and the reference point.

Pure functions of records, so that a report can recompute all of them from the store.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from archloop.profiling.record import Interval, Profile
from archloop.ranking.budgets import Budget, log_readings
from archloop.ranking.record import Objective, Objectives, Readings

DEFAULT_BOUND = 1.5
"""Reference point in latency and memory, as ratios to the reference preset."""
OBJECTIVES = (
    Objective(name="quality", direction="maximize"),
    Objective(name="latency", direction="minimize"),
    Objective(name="memory", direction="minimize"),
)
"""What is optimised unless a recipe says otherwise."""

# --- objectives ---------------------------------------------------------------------------------


def objectives(profiles: Mapping[str, Profile], qualities: Sequence[float]) -> Objectives:
    """What is read of a trial: quality over trainings, latency and memory over processes.

    The standard error of quality over examples is left out: the examples are the same for all
    trials, so that it is no part of how stacks differ.

    Args:
        profiles: by target, each with ratios to the reference.
        qualities: one a training.

    Raises:
        ValueError: a profile has no ratio to the reference.
    """
    return Objectives(values={"quality": readings(qualities), **device(profiles)})


def device(profiles: Mapping[str, Profile]) -> dict[str, Readings]:
    """Latency and memory, each the largest ratio over targets."""
    found: dict[str, Readings] = {}
    names: tuple[Literal["latency", "memory"], ...] = ("latency", "memory")
    for name in names:
        interval, processes = _worst(profiles, name)
        logs = log_readings(interval, processes)
        assert logs.sd is not None
        found[name] = Readings(mean=interval.value, sd=interval.value * logs.sd, n=processes)
    return found


def of_reference(qualities: Sequence[float]) -> Objectives:
    """Of the reference run: its ratios to itself are 1 by definition, its qualities were read.

    Args:
        qualities: one a training.
    """
    one = Readings(mean=1.0, n=0)
    return Objectives(values={"quality": readings(qualities), "latency": one, "memory": one})


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


def reference_point(reference: Mapping[str, Profile], budgets: Sequence[Budget] = ()) -> Objectives:
    """The worst objectives that count, fixed before trial 0.

    Quality: that of a stack which lacks every skill. Latency and memory: what the budgets allow,
    where they limit the objective on every target and at every context; otherwise 1.5 times the
    reference preset.

    Args:
        reference: the reference preset's profiles by target.
        budgets: of the study.
    """
    latencies = [_latency_bound(profile, target, budgets) for target, profile in reference.items()]
    memories = [_memory_bound(profile, target, budgets) for target, profile in reference.items()]
    bounds = {"quality": 0.0, "latency": _largest(latencies), "memory": _largest(memories)}
    return Objectives(values={name: Readings(mean=bound, n=0) for name, bound in bounds.items()})


# --- inside -------------------------------------------------------------------------------------


def _worst(
    profiles: Mapping[str, Profile], objective: Literal["latency", "memory"]
) -> tuple[Interval, int]:
    """The largest ratio over targets, and the number of processes behind it."""
    found: list[tuple[Interval, int]] = []
    for target, profile in profiles.items():
        interval: Interval | None = getattr(profile, f"{objective}_ratio")
        if interval is None:
            raise ValueError(f"the profile on {target} has no {objective} ratio to a reference")
        found.append((interval, profile.num_processes))
    if not found:
        raise ValueError(f"no profile to take {objective} from")
    return max(found, key=lambda pair: pair[0].value)


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
