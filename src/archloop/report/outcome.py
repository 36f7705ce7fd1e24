"""A study's outcome on the terminal: the front as a table, and where the report is."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from archloop.ranking.record import Objectives
from archloop.report.html import count, duration, headline
from archloop.report.palette import label
from archloop.report.summary import front_numbers
from archloop.store.record import (
    StudyRecord,
    TrialRecord,
)


def print_outcome(study: StudyRecord, page: Path, console: Console) -> None:
    """The reference, the front, what was rejected, time by stage, and the report's path."""
    table = Table("trial", "layout", "quality", "latency", "memory", "parameters")
    by_number = {trial.number: trial for trial in study.trials}
    if study.reference is not None and study.reference.objectives is not None:
        table.add_row(*_row("reference", study.reference, study.reference.objectives))
    for number in front_numbers(study):
        trial = by_number[number]
        assert trial.objectives is not None
        table.add_row(*_row(str(number), trial, trial.objectives))
    console.print(table)
    for trial in study.trials:
        if trial.state == "rejected":
            reasons = ", ".join(
                f"{b.metric} at {b.context} on {b.target}: {b.value:.3g} > {b.limit:.3g}"
                + (" x reference" if b.relative else "")
                for b in trial.broken
            )
            console.print(f"rejected {trial.number} {_pattern(trial)}: {reasons}", markup=False)
        elif trial.state in ("unsupported", "failed"):
            why = f"{trial.state} {trial.number} {_pattern(trial)}: {trial.error}"
            console.print(why, markup=False)
        for target, reason in trial.left_out.items():
            console.print(f"{trial.number} was not measured on {target}: {reason}", markup=False)
    for task, reason in study.dropped.items():
        console.print(f"{task} does not count: {reason}", markup=False)
    if len(study.admitted) == 1:
        console.print(
            f"quality is {study.admitted[0]} alone, which is little to judge by", markup=False
        )
    if study.ended is not None:
        console.print(f"ended early: {study.ended}", markup=False)
    stages = ", ".join(
        f"{stage} {duration(seconds)}" for stage, seconds in study.seconds_by_stage.items()
    )
    overhead = "" if study.overhead is None else f"; search overhead {100 * study.overhead:.2f}%"
    console.print(f"{headline(study)}\ntime: {stages}{overhead}\nreport: {page}", markup=False)


def _row(name: str, trial: TrialRecord, objectives: Objectives) -> list[str]:
    return [
        name,
        _pattern(trial),
        f"{objectives.quality:.3f} ± {1.96 * objectives.quality_se:.3f}",
        f"{objectives.latency:.3f} ± {1.96 * objectives.latency_se:.3f}",
        f"{objectives.memory:.3f} ± {1.96 * objectives.memory_se:.3f}",
        count(trial.costs.num_params),
    ]


def _pattern(trial: TrialRecord) -> str:
    return " ".join(label(name) for name in trial.spec.layout)
