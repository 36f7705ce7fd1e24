"""The front as a still picture, for a README or a paper: quality against latency and memory."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from archloop.errors import UserError
from archloop.ranking.record import Objectives
from archloop.report.palette import label
from archloop.report.summary import at_rung, front_numbers
from archloop.store.record import (
    Rung,
    StudyRecord,
    TrialRecord,
)

FORMATS = (".svg", ".png", ".pdf")
_INK, _FRONT, _REST, _REFERENCE = "#26323f", "#1f5fbf", "#9aa5b1", "#c0392b"
_BESIDE: dict[str, Any] = {
    "xytext": (6, 5),
    "textcoords": "offset points",
    "color": _INK,
    "fontsize": 8,
}


def write(study: StudyRecord, path: Path) -> None:
    """Draw rung 0's front into a file; its suffix says the format (svg, png, pdf).

    Raises:
        UserError: no trial was trained yet, or the suffix is none of these.
        OSError: the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: draws {', '.join(FORMATS)}; name a file with one of these ends")
    entries = at_rung(study, 0)
    if not entries:
        raise UserError(f"{study.name} has no trained trial to draw yet")
    with mpl.rc_context({"svg.hashsalt": study.name, "font.size": 9}):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        for axes, cost in zip(
            figure.subplots(1, 2, sharey=True), ("latency", "memory"), strict=True
        ):
            _panel(axes, study, entries, cost)
        figure.supylabel("quality (0 chance, 1 perfect)", fontsize=9, color=_INK)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(
    axes: Axes, study: StudyRecord, entries: list[tuple[TrialRecord, Rung, Objectives]], cost: str
) -> None:
    chosen = set(front_numbers(study))
    for trial, rung, objectives in entries:
        if rung.diverged:
            axes.plot(getattr(objectives, cost), objectives.quality, "x", color=_REST)
            axes.annotate("diverged", (getattr(objectives, cost), objectives.quality), **_BESIDE)
            continue
        color = _FRONT if trial.number in chosen else _REST
        _point(axes, objectives, cost, color, "o")
        if trial.number in chosen:
            letters = "".join(label(name) for name in trial.spec.layout)
            at = (getattr(objectives, cost), objectives.quality)
            axes.annotate(letters, at, **_BESIDE)
    if study.reference is not None and study.reference.objectives is not None:
        _point(axes, study.reference.objectives, cost, _REFERENCE, "*")
    axes.set_xlabel(f"{cost}, ratio to the reference (star)", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7ec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.15, y=0.12)


def _point(axes: Axes, objectives: Objectives, cost: str, color: str, marker: str) -> None:
    axes.errorbar(
        getattr(objectives, cost),
        objectives.quality,
        xerr=1.96 * getattr(objectives, f"{cost}_se"),
        yerr=1.96 * objectives.quality_se,
        fmt=marker,
        color=color,
        markersize=11 if marker == "*" else 6,
        elinewidth=0.8,
        capsize=2,
    )
