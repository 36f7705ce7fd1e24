"""Several measurements of one stack as one: a replicated stack's figures are its replicates'.

A trial is replicated because it looked good, so that its own figures are better than the stack's on
average. Those of its replicates were not chosen, and are read together as one larger measurement.
"""

import math
from collections.abc import Mapping, Sequence

from archloop.profiling.record import Figures, Interval, Profile
from archloop.profiling.statistics import CONFIDENCE, t_quantile
from archloop.ranking.budgets import log_readings
from archloop.ranking.estimates import merged
from archloop.ranking.objectives import device
from archloop.ranking.record import Objective, Objectives


def together(runs: Sequence[Mapping[str, Profile]]) -> dict[str, Profile]:
    """Measurements of one stack as one, by target; a target that one of them lacks is left out.

    Args:
        runs: profiles by target, at least one mapping; a single one stays as it is.
    """
    first, *others = runs
    if not others:
        return dict(first)
    return {
        target: _merged([run[target] for run in runs])
        for target in first
        if all(target in run for run in others)
    }


def worst_of_all(
    stack: Sequence[Objectives],
    runs: Sequence[Mapping[str, Profile]],
    wanted: Sequence[Objective],
) -> Sequence[Objectives]:
    """A replicated stack with devices' figures that are the worst target's over all its replicates.

    Each replicate's own worst target was unlucky in that replicate, so that their mean is as much
    too large as one of them and only seems to be known better. So each target is read over all
    replicates first.

    Args:
        stack: what was read of it by rung, each replicate's worst target averaged.
        runs: profiles by target of each replicate.
        wanted: the study's objectives.
    """
    targets = {frozenset(run) for run in runs}
    if len(runs) < 2 or len(targets) > 1 or any(len(run) < 2 for run in runs):
        # Nothing to average, a lost measurement, or one target, which is the worst in each.
        return stack
    figures = device(together(runs), wanted)
    return [Objectives(values={**at.values, **figures}) for at in stack]


def _merged(profiles: Sequence[Profile]) -> Profile:
    """One profile over all processes."""
    first, *others = profiles

    def behind(name: str) -> list[int]:
        return [profile.processes_behind(name) for profile in profiles]

    def one(name: str, intervals: Sequence[Interval | None]) -> Interval | None:
        known = [each for each in intervals if each is not None]
        return _interval(known, behind(name)) if len(known) == len(profiles) else None

    names = [name for name in Figures.model_fields if name != "context"]
    figures = tuple(
        at[0].model_copy(
            update={name: one(name, [getattr(each, name) for each in at]) for name in names}
        )
        for at in zip(*(profile.figures for profile in profiles), strict=True)
    )
    has_energy = any(at.joules_per_token is not None for at in figures)
    ratios = {
        context: {
            name: _interval([profile.ratios[context][name] for profile in profiles], behind(name))
            for name in own
            if all(name in other.ratios.get(context, {}) for other in others)
        }
        for context, own in first.ratios.items()
    }
    update = {
        "figures": figures,
        "ratios": ratios,
        "latency_ratio": one("latency", [profile.latency_ratio for profile in profiles]),
        "memory_ratio": one("memory", [profile.memory_ratio for profile in profiles]),
        "flags": tuple(dict.fromkeys(flag for profile in profiles for flag in profile.flags)),
        "num_processes": sum(profile.num_processes for profile in profiles),
        "num_repeated": sum(profile.num_repeated for profile in profiles),
        "num_energy_processes": sum(behind("joules_per_token")) if has_energy else None,
        "seconds": math.fsum(profile.seconds for profile in profiles),
    }
    return first.model_copy(update=update)


def _interval(intervals: Sequence[Interval], counts: Sequence[int]) -> Interval:
    """The t-interval over the processes of all, on logarithms as each by itself."""
    logs = merged([log_readings(*pair) for pair in zip(intervals, counts, strict=True)])
    assert logs.sd is not None, "every measurement has two processes at least"
    half = t_quantile(0.5 + CONFIDENCE / 2, logs.n - 1) * logs.sd / math.sqrt(logs.n)
    ends = (logs.mean, logs.mean - half, logs.mean + half)
    value, low, high = (math.exp(end) for end in ends)
    return Interval(value=value, low=low, high=high)
