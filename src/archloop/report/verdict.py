"""What may be said of a study's stacks: its records, seen through `ranking.comparison`."""

import math
from typing import NamedTuple

from archloop.ranking import comparison
from archloop.ranking.comparison import Comparison, Place
from archloop.ranking.membership import Volume
from archloop.ranking.record import Objectives
from archloop.ranking.reliability import NEEDED, seeds_needed
from archloop.store.record import StudyRecord, TrialRecord

MAX_POINTS = 12
"""Points of the hypervolume's growth: each is a comparison of its own."""


class Row(NamedTuple):
    """A compared stack and its place."""

    trial: TrialRecord
    place: Place


class Verdict(NamedTuple):
    """What may be said of a study.

    Attributes:
        comparison: of all scored trials and the reference run.
        reference: the reference run's row; `rows` are the trials', by number.
    """

    comparison: Comparison
    reference: Row
    rows: tuple[Row, ...]

    @property
    def front(self) -> list[Row]:
        """Trials that may be called on the front, fastest first."""
        return [row for row in self.by_latency if row.place.member.status == "front"]

    @property
    def by_latency(self) -> list[Row]:
        """Fastest first."""
        return sorted(self.rows, key=lambda row: row.place.estimates["latency"].mean)

    @property
    def ranks_quality(self) -> bool:
        """Whether quality is known well enough to rank by it."""
        return "quality" not in self.comparison.unranked

    def row(self, number: int) -> Row | None:
        """A trial's row, if it is compared."""
        return next((row for row in self.rows if row.trial.number == number), None)

    def place_in_words(self, row: Row) -> str:
        """Such as ``on the front (97%)``, ``tied (40%)`` or ``dominated by 3``."""
        member = row.place.member
        if member.status == "dominated":
            by = member.dominated_by
            assert by is not None
            name = "the reference" if by < 0 else str(self.rows[by].trial.number)
            return f"dominated by {name}"
        words = {"front": "on the front", "tied": "tied"}[member.status]
        return f"{words} ({member.probability:.0%})"


def verdict(study: StudyRecord) -> Verdict | None:
    """What may be said of a study; None until a trial and the reference run are scored."""
    return _compare(study, len(study.trials))


def growth(study: StudyRecord) -> list[tuple[int, Volume]]:
    """(trial number, hypervolume of the front of all trials up to it), at a few trials."""
    scored = [i for i, trial in enumerate(study.trials) if reached(trial)]
    step = max(1, -(-len(scored) // MAX_POINTS))
    found = []
    for index in scored[::-1][::step][::-1]:
        seen = _compare(study, index + 1)
        if seen is not None:
            found.append((study.trials[index].number, seen.comparison.volume))
    return found


def reached(trial: TrialRecord) -> tuple[Objectives, ...]:
    """What was read of a trial, by rung, as far as its training did not diverge."""
    if trial.state != "complete":
        return ()
    return trial.by_rung[:-1] if trial.diverged else trial.by_rung


def _compare(study: StudyRecord, num_trials: int) -> Verdict | None:
    if study.reference is None or study.reference_point is None:
        return None
    reference = study.reference.by_rung
    trials = [trial for trial in study.trials[:num_trials] if reached(trial)]
    if not trials or not reference:
        return None
    found = comparison.compared(
        reference, [reached(trial) for trial in trials], study.noise, study.reference_point
    )
    rows = [Row(trial, place) for trial, place in zip(trials, found.places, strict=True)]
    return Verdict(found, Row(study.reference, found.reference), tuple(rows))


def ranking_would_take(study: StudyRecord, found: Verdict) -> str:
    """In words: that quality is not ranked, why, and what would rank it."""
    share = found.comparison.reliability["quality"]
    text = (
        f"this study cannot rank quality: its reliability is {share:.2f}, and {NEEDED:g} is needed"
    )
    now = max(1, min(row.place.estimates["quality"].n for row in found.rows))
    needed = seeds_needed(share, now)
    if needed is None:
        return f"{text}; by these trainings the stacks do not differ, train longer"
    stages = study.seconds_by_stage
    training = stages.get("train", 0.0) + stages.get("evaluate", 0.0)
    minutes = (sum(stages.values()) + training * (needed / now - 1)) / 60
    return (
        f"{text}; {needed} trainings a stack instead of {now} would rank it: this recipe with "
        f"`seeds: {needed}` takes about {max(1, math.ceil(minutes))} minutes"
    )
