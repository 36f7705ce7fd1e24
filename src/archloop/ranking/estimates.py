"""From readings to estimates: each stack's own means, with noise learned from all stacks."""

import math
from collections.abc import Iterable, Mapping, Sequence

from archloop.ranking import variance
from archloop.ranking.estimate import Estimate
from archloop.ranking.record import Readings
from archloop.ranking.variance import Pool, Variance


def own_variance(readings: Readings) -> Variance | None:
    """The variance of one reading as these readings show it; None if they show none."""
    if readings.sd is None or readings.n < 2:
        return None
    return Variance(readings.sd**2, readings.n - 1)


def merged(readings: Sequence[Readings]) -> Readings:
    """Several sets of readings of one figure of one stack as one set.

    Args:
        readings: at least one; values that hold by definition are equal and stay so.
    """
    total = sum(each.n for each in readings)
    if total == 0:
        return readings[0]
    mean = math.fsum(each.n * each.mean for each in readings) / total
    within = math.fsum((each.n - 1) * each.sd**2 for each in readings if each.sd is not None)
    between = math.fsum(each.n * (each.mean - mean) ** 2 for each in readings)
    if total == 1:
        return Readings(mean=mean)
    return Readings(mean=mean, sd=math.sqrt((within + between) / (total - 1)), n=total)


def repeated(
    one: Mapping[str, Readings], others: Sequence[Mapping[str, Readings]]
) -> dict[str, Readings]:
    """How far a run of a stack lies from others of it, in the figures that were read once in it.

    It is one degree of freedom of noise, besides those that the others show among themselves.
    Figures that were read more often in a run, as devices' are by several processes, show their
    noise by themselves and are left out, so that no reading counts twice.

    A trial is repeated because it looked good. The best of several was lucky on average, so it lies
    further from its replicates than they from each other, and what is found is more noise than
    there is: intervals get wider than they need be. Where a trial would have been repeated by
    almost any reading it may be less: by 15% of the variance at most beside one replicate.

    Args:
        one: readings by figure.
        others: likewise, one mapping a run.

    Returns:
        By figure, two readings that differ as much.
    """
    found = {}
    for name, readings in one.items():
        again = [each[name] for each in others if name in each and each[name].n]
        if again and readings.n == 1:
            rest = merged(again)
            both = merged([readings, rest])
            sd = abs(readings.mean - rest.mean) * math.sqrt(rest.n / (rest.n + 1))
            found[name] = Readings(mean=both.mean, sd=sd, n=2)
    return found


def pools(stacks: Iterable[Mapping[str, Readings]]) -> dict[str, Pool]:
    """The usual noise of each figure that some stack was read more than once of.

    Of two stacks whose readings vary and agree to the last digit in every figure that both have,
    one has taken over the other's measurement, as a trial of the reference preset does: it counts
    once.

    Args:
        stacks: readings by figure.
    """
    found: dict[str, list[Variance]] = {}
    first: dict[tuple[str, Readings], dict[str, Readings]] = {}
    for stack in stacks:
        variances = {name: own_variance(readings) for name, readings in stack.items()}
        varying = {name: stack[name] for name, own in variances.items() if own and own.value > 0}
        alike = (first.get(each, {}) for each in varying.items())
        taken_over = next((other for other in alike if _agree(other, varying)), {})
        for name, own in variances.items():
            if own is not None and name not in taken_over:
                found.setdefault(name, []).append(own)
        for each in varying.items():
            first.setdefault(each, varying)
    return {name: variance.pooled(variances) for name, variances in found.items()}


def _agree(one: Mapping[str, Readings], other: Mapping[str, Readings]) -> bool:
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[name] == other[name] for name in shared)


def estimate(readings: Readings, pool: Pool) -> Estimate:
    """The mean of readings with the noise that the pool and they themselves make likely.

    Readings of a stack that was read once have the pool's noise; those of one that was read more
    often have their own, shrunk towards the pool's.
    """
    if readings.n == 0:
        return Estimate(mean=readings.mean)
    believed = pool.of_stack(own_variance(readings))
    return Estimate(
        mean=readings.mean,
        se=math.sqrt(believed.value / readings.n),
        df=believed.df,
        n=readings.n,
        shared=believed.shared,
    )


def estimates(
    stacks: Sequence[Mapping[str, Readings]], known: Mapping[str, Pool]
) -> list[dict[str, Estimate]]:
    """Estimates of all stacks.

    Args:
        stacks: readings by figure, one mapping a stack.
        known: the pool of each figure that is not exact.

    Raises:
        KeyError: no stack was read twice of a figure.
    """
    return [
        {
            name: estimate(readings, known[name]) if readings.n else Estimate(mean=readings.mean)
            for name, readings in stack.items()
        }
        for stack in stacks
    ]
