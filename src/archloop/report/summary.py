"""A study boiled down to what is shown: one plain dictionary, for programs and for the report.

Everything is recomputed from the records; nothing is looked up anywhere else.
"""

import math
from typing import Any

from archloop.findings import targets
from archloop.findings.floors import Floors, floors
from archloop.findings.verdict import Row, Verdict, growth, verdict
from archloop.ranking.estimate import Estimate
from archloop.ranking.membership import Volume
from archloop.ranking.record import Objectives
from archloop.report import by_target
from archloop.report.telling import telling
from archloop.store.record import FamilyRate, StudyRecord, TrialRecord


def summarize(study: StudyRecord) -> dict[str, Any]:
    """What ``archloop report --json`` prints.

    Returns:
        trials, rejected, unsupported, failed, front (numbers of the trials that may be called on
        it, fastest first), places (of every compared trial and the reference run: estimates,
        status, probability), rung (that the estimates stand for), reliability by objective,
        unranked (objectives by which this study cannot rank), hypervolume with its interval,
        reference point and growth, tasks, quality (the anchors that it is read between, and
        the scores of the anchor stacks), learning_rates (empty: not tuned), floors (by target and
        mixer: time of its kernels over the floor of the card, by context), ended,
        seconds_by_phase, overhead, environment, by_target (of several targets: each one's own
        front, fastest stack and what it could not run, and pairs that targets order differently).
    """
    found = verdict(study)
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
        **_verdict(found),
        "by_target": by_target.plain(targets.by_target(study)),
        "hypervolume": {
            **_volume(None if found is None else found.comparison.volume),
            "reference_point": _point(study.reference_point),
            "growth": [{"trial": number, **_volume(volume)} for number, volume in growth(study)],
        },
        "reference": None if study.reference is None else _trial(study.reference),
        "tasks": {"admitted": list(study.admitted), "dropped": study.dropped},
        "quality": _quality(study),
        "learning_rates": {name: _rate(rate) for name, rate in study.learning_rates.items()},
        "floors": {each.target: _floors(each) for each in floors(study)},
        "ended": study.ended,
        "seconds_by_phase": study.seconds_by_phase,
        "overhead": study.overhead,
        "environment": study.environment,
    }


def _floors(known: Floors) -> dict[str, Any]:
    return {
        "measured": known.measured,
        "mixers": {
            row.mixer: {
                "prefill": dict(zip(known.contexts, row.prefill, strict=True)),
                "decode": dict(zip(known.contexts, row.decode, strict=True)),
                "fair": row.is_fair,
            }
            for row in known.rows
        },
    }


def _quality(study: StudyRecord) -> dict[str, Any]:
    scores = {
        stack: {name: score.model_dump() for name, score in of_stack.items()}
        for stack, of_stack in study.anchors.items()
    }
    scale = None if study.scale is None else study.scale.model_dump()
    return {"scale": scale, "anchor_stacks": scores}


def _verdict(found: Verdict | None) -> dict[str, Any]:
    if found is None:
        return {"front": [], "places": [], "rung": 0, "reliability": {}, "unranked": []}
    rows = [found.reference, *found.rows]
    words = telling([row.trial.spec for row in rows])
    return {
        "front": [row.trial.number for row in found.front],
        "places": [_place(found, row, differs) for row, differs in zip(rows, words, strict=True)],
        "rung": found.comparison.rung,
        "reliability": found.comparison.reliability,
        "unranked": list(found.comparison.unranked),
    }


def _place(found: Verdict, row: Row, differs: str) -> dict[str, Any]:
    member, names = row.place.member, list(row.place.estimates)
    by = member.dominated_by
    return {
        "number": row.trial.number,
        "estimates": {name: _estimate(e) for name, e in row.place.estimates.items()},
        "status": found.status(row),
        "replicates": [trial.number for trial in row.replicates],
        "may_break": list(row.may_break),
        "probability": member.probability,
        "better_in": [names[column] for column in member.better_in],
        "dominated_by": None if by is None else -1 if by < 0 else found.rows[by].trial.number,
        "differs": differs,
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval()
    return {**estimate.model_dump(), "low": low, "high": high}


def _volume(volume: Volume | None) -> dict[str, float]:
    return {"mean": 0.0, "low": 0.0, "high": 0.0} if volume is None else volume._asdict()


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
        "diverged": trial.diverged,
        "hypervolume_gain": trial.hypervolume_gain,
        "error": trial.error,
        "seconds": trial.seconds,
        "damaged": list(trial.damaged),
    }


def _point(objectives: Objectives | None) -> dict[str, float] | None:
    if objectives is None:
        return None
    return {name: readings.mean for name, readings in objectives.values.items()}


def _rate(rate: FamilyRate) -> dict[str, Any]:
    """JSON knows no infinity: a rate that diverged has no loss."""
    losses = {key: loss if math.isfinite(loss) else None for key, loss in rate.losses.items()}
    return {
        "value": rate.value,
        "at_edge": rate.at_edge,
        "curvature": rate.curvature,
        "losses": losses,
    }
