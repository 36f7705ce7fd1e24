"""A study as one flat row a trial: what tables, data frames and CSV files are made of."""

from typing import Any

from archloop.findings.verdict import Verdict, verdict
from archloop.profiling.record import Figures, Interval
from archloop.ranking.estimate import Estimate
from archloop.store.record import StudyRecord, TrialRecord

_FIGURES = tuple(name for name in Figures.model_fields if name != "context")


def rows(study: StudyRecord) -> list[dict[str, Any]]:
    """One a trial, the reference preset's first; every row has the same keys.

    Of an interval there are ``<name>``, ``<name>_low`` and ``<name>_high``; a measured figure is
    ``<target>/<context>/<figure>``. None where a trial has no such figure.
    """
    found = verdict(study)
    trials = [each for each in (study.reference, *study.trials) if each is not None]
    made = [{**_what(each), **_place(each, found), **_measured(each)} for each in trials]
    names = dict.fromkeys(name for row in made for name in row)
    return [{name: row.get(name) for name in names} for row in made]


def _what(trial: TrialRecord) -> dict[str, Any]:
    return {
        "trial": "reference" if trial.number < 0 else trial.number,
        "state": trial.state,
        "origin": trial.origin,
        "parents": ",".join(map(str, trial.parents)),
        "replicates": trial.replicates,
        "layout": " ".join(trial.spec.layout),
        "num_params": trial.costs.num_params,
        "num_active_params": trial.costs.num_active_params,
        "broken": "; ".join(_broken(each) for each in trial.broken),
        "error": trial.error,
    }


def _broken(budget: Any) -> str:
    ratio = " x reference" if budget.relative else ""
    return f"{budget.metric} at {budget.context} on {budget.target}: {budget.value:.4g}{ratio}"


def _place(trial: TrialRecord, found: Verdict | None) -> dict[str, Any]:
    row = None
    if found is not None:
        row = found.reference if trial.number < 0 else found.row(trial.number)
    if found is None or row is None:
        return {"status": None, "probability": None}
    member = row.place.member
    told: dict[str, Any] = {"status": found.status(row), "probability": member.probability}
    for name, estimate in row.place.estimates.items():
        told |= _ends(name, estimate)
    return told


def _measured(trial: TrialRecord) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for target, profile in trial.profiles.items():
        for figures in profile.figures:
            for name in _FIGURES:
                if (interval := getattr(figures, name)) is not None:
                    told |= _ends(f"{target}/{figures.context}/{name}", interval)
    if trial.rungs:
        told |= {f"score/{name}": each.value for name, each in trial.rungs[-1].scores.items()}
    return told


def _ends(name: str, value: Interval | Estimate) -> dict[str, float]:
    if isinstance(value, Interval):
        return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    low, high = value.interval()
    return {name: value.mean, f"{name}_low": low, f"{name}_high": high}
