"""A study seen with other budgets, objectives or targets: the same measurements, judged anew.

1. What is asked for is refused where it was not measured: it needs a new study. The study's own
   budgets on targets that no longer count go with these.
2. The reference preset's profiles give the noise and the reference point.
3. The figures of each trial are read again, off its stored profiles and scores.
4. Each trial is judged by the budgets as after a last look, which the estimates decide.

The result is a record like the study's own, so that all reports can be made of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from archloop.errors import UserError
from archloop.profiling.record import Profile
from archloop.ranking import budgets as limits
from archloop.ranking import objectives as figures
from archloop.ranking.budgets import Budget
from archloop.ranking.estimates import pools
from archloop.ranking.objectives import OBJECTIVES
from archloop.ranking.record import Objective, Objectives, Readings
from archloop.ranking.variance import Pool
from archloop.store.record import StudyRecord, TrialRecord

_ALWAYS = OBJECTIVES[:2]
"""Stacks are ranked by quality, and listed by latency."""


class Reranked(NamedTuple):
    """A study's record under other terms, and what its measurements do not tell of these."""

    record: StudyRecord
    unknown: tuple[str, ...]


def reranked(
    study: StudyRecord,
    *,
    budgets: Sequence[Budget] | None = None,
    objectives: Sequence[Objective] | None = None,
    targets: Sequence[str] | None = None,
) -> Reranked:
    """Judge and rank the trials of a study anew; nothing is measured.

    Args:
        study: as it was read.
        budgets: in place of the study's; empty for none.
        objectives: likewise; quality and latency are always among them.
        targets: names of those that count.

    Raises:
        UserError: something that was not measured is asked for, or there is no reference run yet.
    """
    reference = study.reference
    if reference is None or study.reference_point is None:
        raise UserError(f"study {study.name} has no reference run yet; let `archloop search` go on")
    if not reference.profiles:
        raise UserError(
            f"the reference preset's measurement is lost: {'; '.join(reference.damaged)}"
        )
    chosen = tuple(reference.profiles) if targets is None else tuple(dict.fromkeys(targets))
    _check_targets(chosen, reference.profiles)
    contexts = {target: reference.profiles[target].identity.contexts for target in chosen}
    own = [Budget.model_validate(each) for each in study.recipe.get("budgets", ())]
    kept = [each for each in own if limits.limits_any(each, contexts)]
    terms = _Terms(
        study,
        tuple(kept if budgets is None else budgets),
        study.objectives
        if objectives is None
        else figures.readable(_completed(objectives), study.scale),
        chosen,
    )
    try:
        limits.check_budgets(terms.budgets, contexts, reference=True)
    except UserError as error:
        raise UserError(f"{error}; what was not measured needs a new study") from error
    try:
        first = terms.without_trials(reference)
        trials = [terms.read(trial) for trial in study.trials]
    except ValueError as error:
        raise UserError(f"this needs a new measurement: {error}") from error
    if budgets is not None or targets is not None:
        known = pools([*first.noise, *(trial.readings for trial in trials)])
        trials = [terms.judged(trial, known) for trial in trials]
    record = first.model_copy(update={"trials": tuple(trials)})
    unknown = terms.unknown(record)
    if budgets is None and len(kept) < len(own):
        gone = ", ".join(str(each) for each in own if each not in kept)
        unknown.append(f"budgets of the study on nothing that counts here: {gone}")
    return Reranked(record, tuple(unknown))


def _check_targets(chosen: Sequence[str], measured: Mapping[str, Profile]) -> None:
    """Raise UserError for a target that was not measured."""
    for target in chosen:
        if target not in measured:
            raise UserError(
                f"target {target!r} was not measured; measured were {', '.join(measured)}, and "
                "another one needs a new study"
            )


def _completed(given: Sequence[Objective]) -> tuple[Objective, ...]:
    # One that is named twice counts once.
    return tuple(dict.fromkeys((*_ALWAYS, *given)))


class _Terms(NamedTuple):
    """What the trials of a study are judged by; each as of the study unless asked for."""

    study: StudyRecord
    budgets: tuple[Budget, ...]
    objectives: tuple[Objective, ...]
    targets: tuple[str, ...]

    def without_trials(self, reference: TrialRecord) -> StudyRecord:
        """The record with all that was fixed before trial 0, under these terms."""
        profiles = self._chosen(reference)
        by_rung = tuple(
            figures.of_reference(self._scored(reference, index, values), self.objectives)
            for index, values in enumerate(reference.by_rung)
        )
        old = [each.name for each in self.study.objectives if each.category is not None]
        trained = [{k: v for k, v in each.items() if k in old} for each in self.study.noise]
        added = {k: v for k, v in by_rung[0].values.items() if k not in old and v.n}
        noise = (self._measured(profiles), *trained, added)
        return self.study.model_copy(
            update={
                "recipe": self._settings(),
                "reference": reference.model_copy(
                    update={"by_rung": by_rung, "profiles": profiles}
                ),
                "reference_point": figures.reference_point(profiles, self.budgets, self.objectives),
                "noise": tuple(filter(None, noise)),
            }
        )

    def read(self, trial: TrialRecord) -> TrialRecord:
        """A trial's figures under these terms; its state is as it was, if there are any."""
        profiles = self._chosen(trial)
        if not profiles:
            return self._without_figures(trial)
        by_rung = tuple(
            figures.objectives(profiles, self._scored(trial, index, values), self.objectives)
            for index, values in enumerate(trial.by_rung)
        )
        update = {
            "profiles": profiles,
            "by_rung": by_rung,
            "readings": self._limited(profiles)
            if self._ended_early(trial)
            else self._measured(profiles),
        }
        return trial.model_copy(update=update)

    def judged(self, trial: TrialRecord, known: Mapping[str, Pool]) -> TrialRecord:
        """A measured trial, rejected or not by these budgets."""
        profiles = self._chosen(trial)
        if not profiles or trial.state in ("failed", "running"):
            return trial
        looks = self.study.recipe.get("looks", 1)
        found = limits.judged(limits.limited(profiles, self.budgets), known, looks, looks)
        state = "rejected" if found.broken or not trial.by_rung else "complete"
        update = {
            "state": state,
            "broken": found.broken,
            "straddles": found.straddles,
            "excess": limits.excess(found.broken),
        }
        return trial.model_copy(update=update)

    def unknown(self, record: StudyRecord) -> list[str]:
        """What these measurements do not tell: a line each."""
        untrained = [
            str(trial.number)
            for trial in record.trials
            if trial.state == "rejected"
            and trial.profiles
            and not (trial.broken or self._is_open(trial))
        ]
        lines = []
        if untrained:
            lines.append(
                f"within these budgets but never trained, as the study's own rejected them: "
                f"{', '.join(untrained)}; a study of another name with these budgets trains them"
            )
        partly = [str(trial.number) for trial in record.trials if self._ended_early(trial)]
        if partly:
            lines.append(
                "measured on some of these targets alone, up to the one whose budget the study saw "
                f"broken: {', '.join(partly)}"
            )
        lost = [str(trial.number) for trial in record.trials if trial.damaged]
        if lost:
            lines.append(
                f"files of trials {', '.join(lost)} are lost; `archloop search --redo` does them "
                "again"
            )
        return lines

    # --- inside ---------------------------------------------------------------------------------

    def _chosen(self, trial: TrialRecord) -> dict[str, Profile]:
        return {name: each for name, each in trial.profiles.items() if name in self.targets}

    def _measured(self, profiles: Mapping[str, Profile]) -> dict[str, Readings]:
        """Readings of a device: the objectives', and of what the budgets limit."""
        return {**figures.device(profiles, self.objectives), **self._limited(profiles)}

    def _limited(self, profiles: Mapping[str, Profile]) -> dict[str, Readings]:
        """Readings of what the budgets limit."""
        return {each.name: each.logs for each in limits.limited(profiles, self.budgets)}

    def _ended_early(self, trial: TrialRecord) -> bool:
        """Whether the study measured a trial on some targets, saw a budget broken, and ended.

        Which of all targets is its worst is then not known.
        """
        return trial.state == "rejected" and bool(trial.profiles and self._missing(trial))

    def _is_open(self, trial: TrialRecord) -> bool:
        """Whether the budgets limit figures of a target on which a trial was not measured."""
        assert self.study.reference is not None
        known = self.study.reference.profiles
        contexts = {name: known[name].identity.contexts for name in self._missing(trial)}
        return any(limits.limits_any(each, contexts) for each in self.budgets)

    def _missing(self, trial: TrialRecord) -> set[str]:
        """Targets that could run a trial and did not measure it."""
        return set(self.targets) - trial.profiles.keys() - trial.left_out.keys()

    def _scored(self, trial: TrialRecord, index: int, values: Objectives) -> dict[str, Readings]:
        """The objectives of scores at a rung: as they were read, and those that are asked for anew.

        Raises:
            ValueError: none of a category's scores counts, or the trainings' file is lost.
        """
        wanted = [each for each in self.objectives if each.category is not None]
        old = {each.name for each in self.study.objectives if each in wanted}
        found = {each.name: values.values[each.name] for each in wanted if each.name in old}
        new = [each for each in wanted if each.name not in old]
        if new and trial.diverged_at(index):
            return {**found, **figures.without_skill(new)}
        if not new:
            return found
        rung = trial.rung(index)
        if rung is None:
            raise ValueError(f"the scores of trial {trial.number} at rung {index} are lost")
        assert self.study.scale is not None, "a reference run has a scale"
        trainings = trial.scores_by_seed.get(index, (rung.scores,))
        return {**found, **figures.of_scores(self.study.scale, trainings, new)}

    def _without_figures(self, trial: TrialRecord) -> TrialRecord:
        """A trial that none of the targets measured, or whose measurement is lost."""
        if trial.state not in ("complete", "rejected"):
            return trial
        reasons = [trial.left_out[name] for name in self.targets if name in trial.left_out]
        why = reasons or trial.damaged or [_ended_on(trial)]
        update: dict[str, Any] = {
            "state": "unsupported" if reasons else "failed",
            "error": "; ".join(why),
            "by_rung": (),
            "broken": (),
            "readings": {},
        }
        return trial.model_copy(update=update)

    def _settings(self) -> dict[str, Any]:
        """The recipe's settings as if it had been written under these terms."""
        recipe = self.study.recipe
        targets = recipe.get("targets", {})
        return {
            **recipe,
            "budgets": [each.model_dump(mode="json") for each in self.budgets],
            "objectives": [each.model_dump(mode="json") for each in self.objectives],
            "targets": {name: targets[name] for name in self.targets if name in targets},
        }


def _ended_on(trial: TrialRecord) -> str:
    """Why a trial was measured on none of the targets that count, though nothing of it is lost."""
    if not trial.broken or not trial.profiles:
        return "its measurement is lost"
    first = trial.broken[0]
    return f"not measured there, as it broke {first.metric} at {first.context} on {first.target}"
