"""The top of the page: which stack to take, what tells it from the reference, what to do next.

The recommended stack is the worthiest of those on the front, each objective counting alike
(`findings.preference`); its figures are those of its replicates, if it has any. A figure is said to
differ where the 95% interval of its ratio to the reference excludes 1, an objective where the
comparison of all stacks at once says so.
"""

import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from archloop.findings.preference import preferred
from archloop.findings.verdict import Row, Verdict, unranked
from archloop.profiling.record import Figures, Interval, Profile
from archloop.ranking.record import Objective
from archloop.store.record import StudyRecord, TrialRecord

_FIGURES = (
    ("ttft_ms", "first token", "ms", 1.0),
    ("decode_p50_ms", "decode step", "ms", 1.0),
    ("peak_memory_bytes", "peak memory", "MiB", 2.0**20),
)


class Line(NamedTuple):
    """One figure of the recommended stack beside the reference's.

    Attributes:
        ratio: to the reference, or for an objective of scores the difference, with its interval.
        verdict: ``better`` or ``worse`` where the two are told apart, else ``tied``.
    """

    what: str
    stack: str
    reference: str
    ratio: str
    verdict: str


class Top(NamedTuple):
    """What stands first.

    Attributes:
        trial: the recommended stack; None: nothing is better than the reference beyond doubt.
        words: the verdict in a sentence.
        lines: its figures beside the reference's.
        command: to copy next; empty where only another recipe would help, as `words` say.
    """

    trial: TrialRecord | None
    words: str
    lines: tuple[Line, ...]
    command: str


def top(study: StudyRecord, found: Verdict | None, folder: str) -> Top:
    """What stands first on a study's page.

    Args:
        study: as it was read.
        found: verdict on it; None where nothing can be compared yet.
        folder: of the study, for the command.
    """
    where = shlex.quote(folder)
    goes_on = f"archloop search {where}"
    more = goes_on if study.is_stopped else f"archloop extend {where} --trials 20"
    if found is None:
        return _before_any(study, where, more)
    if (why := unranked(study, found)) is not None:
        words = "Quality is not known well enough to recommend a stack."
        deeper = "" if why.seeds is None else f"archloop extend {where} --seeds {why.seeds}"
        return Top(None, words, (), goes_on if study.is_stopped else deeper)
    row = _recommended(study, found)
    if row is None:
        words = "No stack is on the front beyond doubt: the reference preset stays."
        return Top(None, words, (), more)
    objectives = tuple(_objectives(found, row, study.objectives))
    lines = (*objectives, *_measured(row))
    words = f"Trial {row.trial.number} is recommended: {found.place_in_words(row)}."
    if worse := [line.what for line in objectives if line.verdict == "worse"]:
        words += (
            f" It pays for that in {' and '.join(worse)}, where it is worse than the reference."
        )
    if row.replicates:
        numbers = ", ".join(str(each.number) for each in row.replicates)
        words += f" Its figures are of its replicates: {numbers}."
    return Top(row.trial, words, lines, f"archloop train {where} --trial {row.trial.number}")


def noise_floor(study: StudyRecord) -> str:
    """How far the reference preset measured beside itself lies from itself, by target."""
    if study.reference is None:
        return ""
    floors = [
        f"{target}: latency {_ends(profile.latency_ratio)}, memory {_ends(profile.memory_ratio)}"
        for target, profile in study.reference.profiles.items()
        if profile.latency_ratio is not None and profile.memory_ratio is not None
    ]
    return "; ".join(floors)


def _before_any(study: StudyRecord, where: str, more: str) -> Top:
    """Of a study none of whose stacks was trained: by now, or because all broke a budget."""
    states = {trial.state for trial in study.trials}
    if study.reference is None or not states or "running" in states:
        return Top(None, "Nothing can be compared yet.", (), f"archloop search {where}")
    if "complete" in states:
        words = (
            "Every stack that was trained diverged: lower proxy.training.learning_rate in a "
            "recipe of another name."
        )
        return Top(None, words, (), "")
    if any(trial.state == "rejected" and not trial.broken for trial in study.trials):
        words = "No stack within these budgets was trained: a study of another name trains them."
        return Top(None, words, (), "")
    if "rejected" in states:
        words = "No stack kept the budgets: try more, or wider ones in a recipe of another name."
        return Top(None, words, (), more)
    return Top(None, "No stack could be compared: each failed, as is said below.", (), more)


def _recommended(study: StudyRecord, found: Verdict) -> Row | None:
    weights = {each.name: 1.0 for each in study.objectives}
    for each in preferred(found, study.objectives, weights):
        if found.status(each.row) == "front":
            return each.row
    return None


def _objectives(found: Verdict, row: Row, wanted: Sequence[Objective]) -> Iterator[Line]:
    for column, objective in enumerate(wanted):
        name = objective.name
        own, theirs = (each.place.estimates[name] for each in (row, found.reference))
        is_better = column in row.place.member.better_in
        # Whether it is worse follows from the two intervals alone, which is careful: they overlap
        # more often than the interval of the difference contains 0. Apart on the better side is no
        # more than tied: what is called better holds for all stacks and figures at once.
        less, more = (theirs, own) if objective.direction == "minimize" else (own, theirs)
        is_worse = less.interval()[1] < more.interval()[0]
        yield Line(
            name,
            f"{own.mean:.3f} ± {own.half_width():.3f}",
            f"{theirs.mean:.3f} ± {theirs.half_width():.3f}",
            f"{own.mean - theirs.mean:+.3f}",
            "better" if is_better else "worse" if is_worse else "tied",
        )


def _measured(row: Row) -> Iterator[Line]:
    for target, profile in row.profiles.items():
        for figures in profile.figures:
            for name, words, unit, scale in _FIGURES:
                yield _figure(target, profile, figures, name, f"{words}, {unit}", scale)


def _figure(
    target: str, profile: Profile, figures: Figures, name: str, words: str, scale: float
) -> Line:
    own: Interval = getattr(figures, name)
    ratio = profile.ratios.get(str(figures.context), {}).get(name)
    if ratio is None:
        verdict, reference = "tied", "-"
    else:
        verdict = "better" if ratio.high < 1 else "worse" if ratio.low > 1 else "tied"
        reference = f"{own.value / ratio.value / scale:,.2f}"
    return Line(
        f"{words} at {figures.context} on {target}",
        f"{own.value / scale:,.2f} [{own.low / scale:,.2f}, {own.high / scale:,.2f}]",
        reference,
        "-" if ratio is None else f"{ratio.value:.3f} {_ends(ratio)}",
        verdict,
    )


def _ends(value: Interval | None) -> str:
    return "-" if value is None else f"[{value.low:.3f}, {value.high:.3f}]"
