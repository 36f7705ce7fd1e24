"""A study's stacks compared: from all that was read of them to what may be said.

1. The noise of each figure is learned from all stacks that were read more than once.
2. Each stack's readings become estimates, rung by rung.
3. Estimates are brought to the highest rung that can be compared.
4. The estimates give each stack's place, the volume of the front, and how far each objective
   can be ranked at all.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from archloop.ranking import lift, membership
from archloop.ranking.estimate import Estimate
from archloop.ranking.estimates import estimate, merged, pools, repeated
from archloop.ranking.membership import Member, Volume
from archloop.ranking.objectives import OBJECTIVES, as_point
from archloop.ranking.record import QUALITY, Objective, Objectives, Readings
from archloop.ranking.reliability import NEEDED
from archloop.ranking.table import table
from archloop.ranking.variance import Pool


class Place(NamedTuple):
    """A stack's estimates by objective, and its place among the others."""

    estimates: dict[str, Estimate]
    member: Member


class Comparison(NamedTuple):
    """What may be said of a study.

    Attributes:
        rung: that values stand for.
        reference: the reference run's place.
        places: of the stacks, in the given order. `Member.dominated_by` counts from 0 at the first
            of them, and is -1 for the reference run.
        reported: indices of the stacks on the front of the shrunk means, -1 for the reference run.
        volume: hypervolume of these.
        reliability: of each objective's estimates.
        pools: noise of one reading of each objective.
    """

    rung: int
    reference: Place
    places: tuple[Place, ...]
    reported: tuple[int, ...]
    volume: Volume
    reliability: dict[str, float]
    pools: dict[str, Pool]

    @property
    def unranked(self) -> tuple[str, ...]:
        """Objectives by which the study cannot rank; quality too, where no score of it counts."""
        missing = () if QUALITY in self.reliability else (QUALITY,)
        noisy = tuple(name for name, share in self.reliability.items() if share < NEEDED)
        return missing + noisy


def compared(
    reference: Sequence[Objectives],
    stacks: Sequence[Sequence[Objectives]],
    noise: Sequence[Mapping[str, Readings]],
    worst: Objectives,
    objectives: Sequence[Objective] = OBJECTIVES,
    *,
    seed: int = 0,
    num_draws: int = membership.NUM_DRAWS,
) -> Comparison:
    """Compare stacks with each other and with the reference run.

    Args:
        reference: what was read of the reference run, by rung.
        stacks: likewise of each stack; at least rung 0.
        noise: further readings of stacks that were read several times.
        worst: the reference point of the hypervolume.
        objectives: that are compared.
        seed: of the draws.
        num_draws: of the posterior.
    """
    everyone = [reference, *stacks]
    known = pools([*noise, *(rungs[0].values for rungs in stacks)])
    columns: dict[str, list[Estimate]] = {}
    rung = 0
    for objective in objectives:
        name = objective.name
        rung, columns[name] = lift.lifted(
            [[_estimate(at.values[name], known.get(name)) for at in rungs] for rungs in everyone]
        )
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(everyone))]
    standing = membership.standing(
        table(rows, objectives),
        as_point(worst, objectives),
        reference=0,
        seed=seed,
        num_draws=num_draws,
    )
    first, *others = (
        Place(row, _from_reference(member))
        for row, member in zip(rows, standing.members, strict=True)
    )
    names = [objective.name for objective in objectives]
    return Comparison(
        rung,
        first,
        tuple(others),
        tuple(index - 1 for index in standing.reported),
        standing.volume,
        dict(zip(names, standing.reliability_M, strict=True)),
        known,
    )


def with_replicates(
    runs: Sequence[Sequence[Sequence[Objectives]]],
) -> tuple[list[Sequence[Objectives]], list[dict[str, Readings]]]:
    """What stands for each stack where some were tried again, and the noise that this shows.

    A stack that was replicated stands by its replicates alone, which were not chosen for being
    good. How far its first run lies from them is noise all the same.

    Args:
        runs: by stack, what was read by rung: of the trial that tried it first, then of each
            replicate of it.

    Returns:
        What was read of each stack by rung, and further readings for the noise: what `compared`
        takes as its stacks and, beside the study's own, as its noise.
    """
    stacks: list[Sequence[Objectives]] = [
        _merged(again) if again else first for first, *again in runs
    ]
    noise = [
        repeated(first[0].values, [each[0].values for each in again]) for first, *again in runs
    ]
    return stacks, noise


def _merged(runs: Sequence[Sequence[Objectives]]) -> tuple[Objectives, ...]:
    """Runs as one stack, at the rungs that all of them reached."""
    return tuple(
        Objectives(
            values={
                name: merged([objectives.values[name] for objectives in rungs])
                for name in rungs[0].values
            }
        )
        for rungs in zip(*runs, strict=False)
    )


def _estimate(readings: Readings, pool: Pool | None) -> Estimate:
    if pool is None:
        assert readings.n == 0, "no stack was read twice, so the noise is unknown"
        return Estimate(mean=readings.mean)
    return estimate(readings, pool)


def _from_reference(member: Member) -> Member:
    """Indices of stacks as the caller has them: the reference run is none of these."""
    if member.dominated_by is None:
        return member
    return member._replace(dominated_by=member.dominated_by - 1)
