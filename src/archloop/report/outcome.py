"""A study's outcome on the terminal: what is certain first, then what could be ranked."""

from collections.abc import Sequence
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

_MOST = 20
"""Characters of the name of a target in a table."""


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
    """What devices told, and where stacks differ from the reference beyond doubt.

    Of one target that is milliseconds and MiB of each stack. Several targets have three such
    figures each for every stack, too many to stand side by side in a terminal: the reference has
    all of its own, and each stack its ratios to the reference where they are largest and smallest.
    The page has the rest. Figures of a replicated stack are its replicates'.
    """
    rows = [found.reference, *found.by_latency]
    if max(len(row.profiles) for row in rows) > 1:
        _print_reference(found.reference, console)
        _print_ratios(rows, console)
        return
    table = Table("trial", "layout", "TTFT ms", "decode ms", "peak MiB", "beyond doubt")
    for row in rows:
        figures = [_figures_of(profile) for profile in row.profiles.values()]
        cells = figures[0] if figures else ("", "", "")
        table.add_row(_name(row), _pattern(row.trial), *cells, _better(row))
    console.print(table)


def _print_reference(row: Row, console: Console) -> None:
    """Figures of the reference preset at the largest context of each target, a line a target."""
    table = Table("the reference on", "tokens", "TTFT ms", "decode ms", "peak MiB")
    for target, profile in row.profiles.items():
        context = f"{profile.figures[-1].context:,}"
        table.add_row(_shortened(target), context, *_figures_of(profile))
    console.print(table)


def _print_ratios(rows: Sequence[Row], console: Console) -> None:
    """Of each stack the ratios to the reference at both ends of their range over targets."""
    table = Table("trial", "layout", "latency", "memory", "beyond doubt")
    for index in (0, 2, 3):
        # The name of a target that is cut off at its end may be that of another. A layout and words
        # may take more lines instead.
        table.columns[index].no_wrap = True
    for row in rows:
        cells = ["1.00", "1.00"]
        if row.trial.number >= 0:
            latency, memory = (_range(row, f"{name}_ratio") for name in ("latency", "memory"))
            cells = [
                "\n".join(f"{value:.2f} {_shortened(target)}" for target, value in latency),
                " to ".join(f"{value:.2f}" for _, value in reversed(memory)),
            ]
        table.add_row(_name(row), _pattern(row.trial), *cells, _better(row))
    console.print(
        "times the reference: latency on the target where it is largest, and where it is smallest",
        soft_wrap=True,
    )
    console.print(table)


def _range(row: Row, ratio: str) -> list[tuple[str, float]]:
    """The targets where a stack's ratio to the reference is largest and smallest, with the ratios.

    One of them if they are the same; none if no target has the ratio.
    """
    known = [
        (target, value.value)
        for target, profile in row.profiles.items()
        if (value := getattr(profile, ratio)) is not None
    ]
    known.sort(key=lambda pair: -pair[1])
    return list(dict.fromkeys([*known[:1], *known[-1:]]))


def _shortened(target: str) -> str:
    """A target's name, or its two ends where a line of 80 characters has no room for more.

    Targets of one device differ at the end of their names, those of one engine at the beginning.
    """
    half = (_MOST - len("...")) // 2
    return target if len(target) <= _MOST else f"{target[:half]}...{target[-half - 1 :]}"


def _name(row: Row) -> str:
    return "reference" if row.trial.number < 0 else str(row.trial.number)


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
            _name(row),
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
