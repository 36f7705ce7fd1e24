"""A study of several targets seen target by target: who is on each front, where targets disagree.

The study's own front is of the worst target of each stack. Here each target is judged alone, off
the same measurements, and two stacks that targets order differently beyond doubt are named.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from archloop.findings.rerank import reranked
from archloop.findings.verdict import Row, Verdict, verdict
from archloop.store.record import StudyRecord


class Disagreement(NamedTuple):
    """Two stacks of which either is faster beyond doubt, each on other targets.

    Attributes:
        one: number of a trial.
        other: likewise.
        one_faster_on: targets where the first's interval of latency lies below the second's.
        other_faster_on: those where it lies above.
    """

    one: int
    other: int
    one_faster_on: tuple[str, ...]
    other_faster_on: tuple[str, ...]


class ByTarget(NamedTuple):
    """What each target alone says of a study's stacks.

    Attributes:
        verdicts: by target; None where none of its trials is scored there.
        left_out: by target, trials that it could not run, with the reason.
        disagreements: the pair first that most targets tell apart.
    """

    verdicts: Mapping[str, Verdict | None]
    left_out: Mapping[str, Mapping[int, str]]
    disagreements: tuple[Disagreement, ...]


def by_target(study: StudyRecord) -> ByTarget | None:
    """Each target's verdict; None for a study of one target, or without a reference run yet."""
    reference = study.reference
    if reference is None or len(reference.profiles) < 2 or study.reference_point is None:
        return None
    verdicts = {
        name: verdict(reranked(study, targets=[name]).record) for name in reference.profiles
    }
    left_out = {
        name: {
            trial.number: trial.left_out[name] for trial in study.trials if name in trial.left_out
        }
        for name in reference.profiles
    }
    return ByTarget(verdicts, left_out, _disagreements(verdicts))


def fastest(found: Verdict) -> Row:
    """The stack whose estimated latency is least among those that nothing dominates."""
    free = [row for row in found.by_latency if row.place.member.status != "dominated"]
    return (free or found.by_latency)[0]


def _disagreements(verdicts: Mapping[str, Verdict | None]) -> tuple[Disagreement, ...]:
    intervals = {
        name: {row.trial.number: row.place.estimates["latency"].interval() for row in found.rows}
        for name, found in verdicts.items()
        if found is not None
    }
    numbers = sorted({number for own in intervals.values() for number in own})
    found = []
    for one, other in combinations(numbers, 2):
        both = {name: own for name, own in intervals.items() if one in own and other in own}
        below = tuple(name for name, own in both.items() if own[one][1] < own[other][0])
        above = tuple(name for name, own in both.items() if own[other][1] < own[one][0])
        if below and above:
            found.append(Disagreement(one, other, below, above))
    return tuple(sorted(found, key=lambda d: -len(d.one_faster_on) - len(d.other_faster_on)))
