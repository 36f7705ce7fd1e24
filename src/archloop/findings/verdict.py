"""What may be said of a study's stacks: its records, seen through `ranking.comparison`."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from archloop.findings.together import together, worst_of_all
from archloop.profiling.record import Profile
from archloop.ranking import comparison, membership
from archloop.ranking.budgets import Budget, limited
from archloop.ranking.comparison import Comparison, Place
from archloop.ranking.estimates import estimate, merged, pools
from archloop.ranking.membership import Status, Volume
from archloop.ranking.record import Readings
from archloop.ranking.reliability import NEEDED, seeds_needed
from archloop.ranking.variance import Pool
from archloop.store.record import StudyRecord, TrialRecord

MAX_POINTS = 12
"""Points of the hypervolume's growth: each is a comparison of its own."""
GROWTH_DRAWS = 200
"""Draws behind each of these points."""
_TRAINING = ("train", "evaluate")
"""Phases of a trial that another training of it takes once more."""


class Row(NamedTuple):
    """A compared stack and its place.

    Attributes:
        trial: that tried it first.
        place: by its replicates alone, if it has any.
        replicates: other measurements and trainings of it.
        may_break: names of the figures whose upper bound exceeds their budget.
    """

    trial: TrialRecord
    place: Place
    replicates: tuple[TrialRecord, ...] = ()
    may_break: tuple[str, ...] = ()

    @property
    def profiles(self) -> dict[str, Profile]:
        """By target, what was measured of the stack: by its replicates alone, if it has any."""
        again = [each.profiles for each in self.replicates if each.profiles]
        return together(again or [self.trial.profiles])


class Verdict(NamedTuple):
    """What may be said of a study.

    Attributes:
        comparison: of all scored trials and the reference run.
        reference: the reference run's row; `rows` are the trials', by number, without replicates.
        replicates: the study replicates what it would call on the front.
    """

    comparison: Comparison
    reference: Row
    rows: tuple[Row, ...]
    replicates: bool

    @property
    def front(self) -> list[Row]:
        """Trials that may be called on the front, fastest first."""
        return [row for row in self.by_latency if self.status(row) == "front"]

    def status(self, row: Row) -> Status:
        """What is claimed of a stack: on the front only by its replicates, within its budgets.

        Where quality cannot be ranked nothing is claimed of any. The reference run has to prove
        nothing: it is on the front until it is dominated.
        """
        member = row.place.member
        if not self.ranks_quality:
            return "tied"
        unproven = row.may_break or (self.replicates and not row.replicates)
        is_claimed = member.status == "front" and row.trial.number >= 0
        return "tied" if is_claimed and unproven else member.status

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
        """Such as ``on the front (97%)``, ``tied (40%)``, ``dominated by 3`` or ``not ranked``."""
        member = row.place.member
        if not self.ranks_quality:
            return "not ranked"
        if member.status == "dominated":
            by = member.dominated_by
            assert by is not None
            name = "the reference" if by < 0 else str(self.rows[by].trial.number)
            return f"dominated by {name}"
        words = {"front": "on the front", "tied": "tied"}[member.status]
        words = f"{words} ({member.probability:.0%})"
        if member.status == "front" and row.may_break:
            return f"{words}, but may break {row.may_break[0]}"
        if member.status == "front" and self.replicates and not row.replicates:
            return f"{words}, not replicated"
        return words


def verdict(study: StudyRecord) -> Verdict | None:
    """What may be said of a study; None until a trial and the reference run are scored."""
    return _compare(study, len(study.trials), membership.NUM_DRAWS)


def growth(study: StudyRecord) -> list[tuple[int, Volume]]:
    """(trial number, hypervolume of the front of all trials up to it), at a few trials."""
    scored = [i for i, trial in enumerate(study.trials) if trial.reached]
    step = max(1, -(-len(scored) // MAX_POINTS))
    found = []
    for index in scored[::-1][::step][::-1]:
        seen = _compare(study, index + 1, GROWTH_DRAWS)
        if seen is not None:
            found.append((study.trials[index].number, seen.comparison.volume))
    return found


def _compare(study: StudyRecord, num_trials: int, num_draws: int) -> Verdict | None:
    if study.reference is None or study.reference_point is None or not study.reference.by_rung:
        return None
    seen = study.trials[:num_trials]
    trials = [trial for trial in seen if trial.reached and trial.replicates is None]
    if not trials:
        return None
    again = [replicates(trial, seen) for trial in trials]
    stacks, repeats = comparison.with_replicates(
        [
            [trial.reached, *(each.reached for each in others)]
            for trial, others in zip(trials, again, strict=True)
        ]
    )
    stacks = [
        worst_of_all(stack, [each.profiles for each in others], study.objectives)
        for stack, others in zip(stacks, again, strict=True)
    ]
    found = comparison.compared(
        study.reference.by_rung,
        stacks,
        [*study.noise, *repeats],
        study.reference_point,
        study.objectives,
        num_draws=num_draws,
    )
    known = pools([*study.noise, *(trial.readings for trial in study.trials)])
    budgets = [Budget.model_validate(budget) for budget in study.recipe.get("budgets", ())]
    rows = tuple(
        Row(trial, place, others, _may_break(_measured(trial, seen), budgets, known))
        for trial, place, others in zip(trials, found.places, again, strict=True)
    )
    replicated = bool(study.recipe.get("replicates", 0))
    return Verdict(found, Row(study.reference, found.reference), rows, replicated)


def replicates(trial: TrialRecord, trials: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Those of these trials that replicate one and were trained."""
    return tuple(each for each in trials if each.replicates == trial.number and each.reached)


def _measured(trial: TrialRecord, trials: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Its replicates, those that broke a budget too: leaving them out would choose by outcome."""
    found = tuple(each for each in trials if each.replicates == trial.number and each.readings)
    return found or (trial,)


def _may_break(
    measured: Sequence[TrialRecord], budgets: Sequence[Budget], known: Mapping[str, Pool]
) -> tuple[str, ...]:
    """Figures that may break their budget by the upper bound over all measurements of a stack."""
    limits: dict[str, float] = {}
    logs: dict[str, list[Readings]] = {}
    for each in measured:
        own: dict[str, Readings] = {}
        for figure in limited(each.profiles, budgets):
            # Several budgets may limit one figure, which was read once.
            limits[figure.name] = min(figure.budget.limit, limits.get(figure.name, math.inf))
            # A record without readings has them in its profile still, as the study read them.
            own[figure.name] = each.readings.get(figure.name, figure.logs)
        for name, readings in own.items():
            logs.setdefault(name, []).append(readings)
    known = {**pools([{name: merged(each)} for name, each in logs.items()]), **known}
    return tuple(
        name
        for name, limit in limits.items()
        if estimate(merged(logs[name]), known[name]).interval()[1] > math.log(limit)
    )


class Unranked(NamedTuple):
    """Why a study cannot rank quality, and what would.

    Attributes:
        words: both in a sentence.
        seeds: trainings a stack that would do; None if more trainings of this length would not.
    """

    words: str
    seeds: int | None


def unranked(study: StudyRecord, found: Verdict) -> Unranked | None:
    """What keeps a study from ranking quality; None if it does rank it."""
    if found.ranks_quality:
        return None
    if study.scale is None:
        words = (
            "this study cannot rank quality: no score tells the anchor stacks apart, so no "
            "candidate was trained; longer trainings (proxy.rungs), more trainings of the anchor "
            "stacks (reference_seeds), other anchors or easier tasks (proxy.tasks) may, in a "
            "recipe of another name"
        )
        return Unranked(words, None)
    share = found.comparison.reliability["quality"]
    text = (
        f"this study cannot rank quality: its reliability is {share:.2f}, and {NEEDED:g} is needed"
    )
    if rung := found.comparison.rung:
        # `extend --seeds` trains more at rung 0 alone: values of a higher rung stay as they are.
        words = (
            f"{text}; its values are of rung {rung}, to which each stack is trained once; one rung "
            "of that length (proxy.rungs) with several seeds may, in a recipe of another name"
        )
        return Unranked(words, None)
    now = max(1, min(row.place.estimates["quality"].n for row in found.rows))
    needed = seeds_needed(share, now)
    if needed is None:
        words = f"{text}; by these trainings the stacks do not differ, train longer (proxy.rungs)"
        return Unranked(f"{words} in a recipe of another name", None)
    minutes = max(1, math.ceil(_training_s(study) * (needed / now - 1) / 60))
    words = (
        f"{text}; {needed} trainings a stack instead of {now} would rank it, in about {minutes} "
        f"more minute{'s' * (minutes > 1)}: `archloop extend` with `--seeds {needed}`"
    )
    return Unranked(words, needed)


def _training_s(study: StudyRecord) -> float:
    """Wall time of the trials' trainings, as many at once as the recipe says."""
    workers = (study.recipe.get("executor") or {}).get("workers") or 1
    phases = [trial.seconds.get(name, 0.0) for trial in study.trials for name in _TRAINING]
    return math.fsum(phases) / workers
