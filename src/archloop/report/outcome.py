"""A study's outcome on the terminal: what is certain first, then what could be ranked."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from archloop.findings import targets
from archloop.findings.floors import floors
from archloop.findings.verdict import Row, Verdict, unranked, verdict
from archloop.profiling.record import Profile
from archloop.report.by_target import lines
from archloop.report.html import NEVER_TRAINED, count, duration, estimate, headline
from archloop.report.measures import quality_in_words
from archloop.report.palette import distinct, label
from archloop.report.telling import telling
from archloop.report.top import top
from archloop.store.record import StudyRecord, TrialRecord


def print_outcome(
    study: StudyRecord, page: Path | None, console: Console, folder: str | None = None
) -> None:
    """Stacks against the reference, what was rejected, time by phase, the page if there is one.

    Args:
        study: as it was read.
        page: that was written.
        console: to print to.
        folder: of the study, for the command to copy next; None names none.
    """
    with distinct(study.mixers):
        _print_outcome(study, page, console)
    if folder is not None and (command := top(study, verdict(study), folder).command):
        console.print(f"next: {command}", markup=False, soft_wrap=True)


def _print_outcome(study: StudyRecord, page: Path | None, console: Console) -> None:
    found = verdict(study)
    if found is not None:
        _print_certain(found, console)
        _print_places(found, console)
        if (why := unranked(study, found)) is not None:
            console.print(why.words, markup=False, soft_wrap=True)
    if (by_target := targets.by_target(study)) is not None:
        for line in lines(by_target):
            console.print(line, markup=False, soft_wrap=True)
    _print_others(study, console)
    _print_lost(study, console)
    if found is not None and study.scale is not None:
        console.print(quality_in_words(study), markup=False, soft_wrap=True)
    for task, reason in study.dropped.items():
        console.print(f"{task} does not count: {reason}", markup=False, soft_wrap=True)
    if len(study.admitted) == 1:
        console.print(
            f"quality is one score, {study.admitted[0]}, which is little to judge by", markup=False
        )
    for known in floors(study):
        if known.slow:
            console.print(known.words, markup=False)
    if study.ended is not None:
        console.print(f"ended early: {study.ended}", markup=False)
    phases = ", ".join(
        f"{phase} {duration(seconds)}" for phase, seconds in study.seconds_by_phase.items()
    )
    overhead = "" if study.overhead is None else f"; search overhead {100 * study.overhead:.2f}%"
    text = f"{headline(study, found)}\ntime: {phases}{overhead}"
    console.print(text, markup=False, soft_wrap=True)
    if page is not None:
        console.print(f"report: {page}", markup=False, soft_wrap=True)


def _print_lost(study: StudyRecord, console: Console) -> None:
    """The files that are missing or damaged, a line for each trial."""
    for trial in (study.reference, *study.trials):
        if trial is not None and trial.damaged:
            name = "the reference preset" if trial.number < 0 else f"trial {trial.number}"
            more = f" (and {len(trial.damaged) - 1} more)" if len(trial.damaged) > 1 else ""
            text = f"lost of {name}: {trial.damaged[0]}{more}"
            if trial.number < 0:
                text += "; --redo leaves it, since what trials are compared with must not move"
            console.print(text, markup=False, soft_wrap=True)


def _print_certain(found: Verdict, console: Console) -> None:
    """Milliseconds and MiB on the device, and where they differ from the reference beyond doubt."""
    table = Table("trial", "layout", "TTFT ms", "decode ms", "peak MiB", "beyond doubt")
    for row in [found.reference, *found.by_latency]:
        name = "reference" if row.trial.number < 0 else str(row.trial.number)
        table.add_row(name, _pattern(row.trial), *_figures(row.trial), _better(row))
    console.print(table)


def _print_places(found: Verdict, console: Console) -> None:
    """Estimates and places; without a ranking where quality is not known well enough for one."""
    names = list(found.reference.place.estimates)
    table = Table("trial", *names, "parameters", "place" if found.ranks_quality else "not ranked")
    rows = [found.reference, *found.by_latency]
    for row, differs in zip(rows, telling([row.trial.spec for row in rows]), strict=True):
        is_reference = row.trial.number < 0
        values = [estimate(row.place.estimates[name]) for name in names]
        place = ""
        if found.ranks_quality:
            place = "the reference" if is_reference else found.place_in_words(row)
        table.add_row(
            "reference" if is_reference else str(row.trial.number),
            *values,
            count(row.trial.costs.num_params),
            "; ".join(filter(None, (place, differs))) or "-",
        )
    console.print(table)


def _print_others(study: StudyRecord, console: Console) -> None:
    for trial in study.trials:
        if trial.state == "rejected":
            reasons = ", ".join(
                f"{b.metric} at {b.context} on {b.target}: {b.value:.3g} > {b.limit:.3g}"
                + (" x reference" if b.relative else "")
                for b in trial.broken
            )
            text = f"rejected {trial.number} {_pattern(trial)}: {reasons or NEVER_TRAINED}"
            console.print(text, markup=False, soft_wrap=True)
        elif trial.state in ("unsupported", "failed"):
            why = f"{trial.state} {trial.number} {_pattern(trial)}: {trial.error}"
            console.print(why, markup=False, soft_wrap=True)
        for target, reason in trial.left_out.items():
            text = f"{trial.number} was not measured on {target}: {reason}"
            console.print(text, markup=False, soft_wrap=True)


def _figures(trial: TrialRecord) -> list[str]:
    """At the largest context of each target: TTFT, decode step and peak memory."""
    columns: list[list[str]] = [[], [], []]
    for target, profile in trial.profiles.items():
        for column, words in zip(columns, _figures_of(profile), strict=True):
            column.append(f"{target} {words}" if len(trial.profiles) > 1 else words)
    return ["\n".join(column) for column in columns]


def _figures_of(profile: Profile) -> tuple[str, str, str]:
    at = profile.figures[-1]
    return (
        f"{at.ttft_ms.value:.1f}",
        f"{at.decode_p50_ms.value:.2f}",
        f"{at.peak_memory_bytes.value / 2**20:.0f}",
    )


def _better(row: Row) -> str:
    """In what a stack is better than the reference beyond doubt."""
    names = list(row.place.estimates)
    words = {"latency": "faster", "memory": "smaller"}
    better = [names[column] for column in row.place.member.better_in]
    return ", ".join(words.get(name, f"better in {name}") for name in better)


def _pattern(trial: TrialRecord) -> str:
    return " ".join(label(name) for name in trial.spec.layout)
