"""A study boiled down to what is shown: one plain dictionary, for programs and for the report.

Everything is recomputed from the records; nothing is looked up anywhere else.
"""

import math
from typing import Any

from archloop.ranking.front import nondominated
from archloop.ranking.objectives import as_point
from archloop.ranking.record import Objectives
from archloop.store.record import (
    FamilyRate,
    Rung,
    StudyRecord,
    TrialRecord,
)
from archloop.store.store import hypervolume_curve

__all__ = ["at_rung", "diverged", "front_numbers", "hypervolume_curve", "rungs", "summarize"]


def summarize(study: StudyRecord) -> dict[str, Any]:
    """What ``archloop report --json`` prints.

    Returns:
        trials, rejected, failed, front (trial numbers by rung), hypervolume with its reference
        point and its curve, tasks, noise, learning_rates (empty: not tuned), ended,
        seconds_by_stage, overhead, environment.
    """
    fronts = {rung: front_numbers(study, rung) for rung in rungs(study)}
    curve = hypervolume_curve(study)
    return {
        "name": study.name,
        "trials": [_trial(trial) for trial in study.trials],
        "rejected": [
            {
                "number": t.number,
                "layout": t.spec.layout,
                "broken": [b.model_dump() for b in t.broken],
                "error": t.error,
            }
            for t in study.trials
            if t.state == "rejected"
        ],
        "unsupported": [
            {"number": t.number, "error": t.error} for t in study.trials if t.state == "unsupported"
        ],
        "failed": [
            {"number": t.number, "layout": t.spec.layout, "error": t.error}
            for t in study.trials
            if t.state == "failed"
        ],
        "front": fronts.get(0, []),
        "front_by_rung": {str(rung): numbers for rung, numbers in fronts.items()},
        "hypervolume": {
            "value": curve[-1][1] if curve else 0.0,
            "reference_point": _point(study.reference_point),
            "curve": curve,
        },
        "reference": None if study.reference is None else _trial(study.reference),
        "tasks": {"admitted": list(study.admitted), "dropped": study.dropped},
        "noise": study.noise,
        "learning_rates": {name: _rate(rate) for name, rate in study.learning_rates.items()},
        "ended": study.ended,
        "seconds_by_stage": study.seconds_by_stage,
        "overhead": study.overhead,
        "environment": study.environment,
    }


def rungs(study: StudyRecord) -> list[int]:
    """Indices of the rungs that any trial reached."""
    return sorted({rung.index for trial in study.trials for rung in trial.rungs})


def at_rung(study: StudyRecord, index: int) -> list[tuple[TrialRecord, Rung, Objectives]]:
    """Trials with objectives at a rung."""
    return [
        (trial, rung, rung.objectives)
        for trial in study.trials
        for rung in trial.rungs
        if rung.index == index and rung.objectives is not None
    ]


def front_numbers(study: StudyRecord, index: int = 0) -> list[int]:
    """Trial numbers on the front of a rung, fastest first; none whose training diverged there."""
    entries = [entry for entry in at_rung(study, index) if not entry[1].diverged]
    if not entries:
        return []
    mask = nondominated([as_point(objectives) for _, _, objectives in entries])
    chosen = [entry for entry, keep in zip(entries, mask, strict=True) if keep]
    return [trial.number for trial, _, _ in sorted(chosen, key=lambda entry: entry[2].latency)]


def diverged(trial: TrialRecord) -> bool:
    """Whether a training of this trial ended by a loss that was not finite."""
    return any(rung.diverged for rung in trial.rungs)


def _trial(trial: TrialRecord) -> dict[str, Any]:
    objectives = trial.objectives
    return {
        "number": trial.number,
        "state": trial.state,
        "origin": trial.origin,
        "parents": list(trial.parents),
        "layout": trial.spec.layout,
        "spec": trial.spec.model_dump(mode="json"),
        "values": None if objectives is None else objectives.model_dump(),
        "scores": {r.index: {k: s.model_dump() for k, s in r.scores.items()} for r in trial.rungs},
        "costs": trial.costs.model_dump(),
        "profiles": {target: p.model_dump(mode="json") for target, p in trial.profiles.items()},
        "left_out": trial.left_out,
        "straddles": list(trial.straddles),
        "diverged": diverged(trial),
        "hypervolume_gain": trial.hypervolume_gain,
        "error": trial.error,
        "seconds": trial.seconds,
    }


def _point(objectives: Objectives | None) -> dict[str, float] | None:
    if objectives is None:
        return None
    fields = ("quality", "latency", "memory")
    return {field: getattr(objectives, field) for field in fields}


def _rate(rate: FamilyRate) -> dict[str, Any]:
    """JSON knows no infinity: a rate that diverged has no loss."""
    losses = {key: loss if math.isfinite(loss) else None for key, loss in rate.losses.items()}
    return {"value": rate.value, "at_edge": rate.at_edge, "losses": losses}
