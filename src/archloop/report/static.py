"""The front as a still picture, for a README or a paper: quality against latency and memory."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from archloop.errors import UserError
from archloop.findings.verdict import Row, Verdict, verdict
from archloop.ranking.record import QUALITY
from archloop.report.palette import distinct, label
from archloop.store.record import StudyRecord

FORMATS = (".svg", ".png", ".pdf")
_INK, _REST, _REFERENCE = "#26323f", "#9aa5b1", "#c0392b"
_COLORS = {"front": "#1f5fbf", "tied": "#6f9bd8", "dominated": _REST}
_BESIDE: dict[str, Any] = {
    "xytext": (6, 5),
    "textcoords": "offset points",
    "color": _INK,
    "fontsize": 8,
}


def check(path: Path) -> None:
    """Refuse a file that nothing can be drawn into, before the work for it begins.

    Raises:
        UserError: its suffix is none of the formats.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: draws {', '.join(FORMATS)}; name a file with one of these ends")


def write(study: StudyRecord, path: Path) -> None:
    """Draw what may be said of a study into a file; its suffix says the format (svg, png, pdf).

    Raises:
        UserError: no trial was trained yet, there is one objective alone, or the suffix is none of
            these.
        OSError: the file cannot be written.
    """
    check(path)
    found = verdict(study)
    if found is None:
        raise UserError(f"{study.name} has no trained trial to draw yet")
    first, *others = found.reference.place.estimates
    if not others:
        raise UserError(
            f"{study.name} has no objective to draw {first} against; its report lists the trials"
        )
    with mpl.rc_context({"svg.hashsalt": study.name, "font.size": 9}), distinct(study.mixers):
        figure = Figure(figsize=(4.5 * len(others), 3.8), layout="constrained")
        panels = figure.subplots(1, len(others), sharey=True, squeeze=False)[0]
        for axes, other in zip(panels, others, strict=True):
            _panel(axes, study, found, first, other)
        ranked = found.ranks_quality or first != QUALITY
        label_ = first if ranked else f"{first} (not ranked: too noisy)"
        figure.supylabel(label_, fontsize=9, color=_INK)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Axes, study: StudyRecord, found: Verdict, first: str, other: str) -> None:
    for trial in study.trials:
        lost = trial.objectives if not trial.reached else None
        if lost is not None:
            at = (lost.mean(other), lost.mean(first))
            axes.plot(*at, "x", color=_REST)
            axes.annotate("diverged", at, **_BESIDE)
    for row in found.rows:
        status = found.status(row)
        at = _point(axes, row, first, other, _COLORS[status], "o")
        if status != "dominated":
            letters = "".join(label(name) for name in row.trial.spec.layout)
            axes.annotate(letters, at, **_BESIDE)
    _point(axes, found.reference, first, other, _REFERENCE, "*")
    axes.set_xlabel(f"{other}; the star is the reference run", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7ec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.15, y=0.12)


def _point(
    axes: Axes, row: Row, first: str, other: str, color: str, marker: str
) -> tuple[float, float]:
    """A point with its 95% intervals; returns where it lies."""
    x, y = row.place.estimates[other], row.place.estimates[first]
    axes.errorbar(
        x.mean,
        y.mean,
        xerr=x.half_width(),
        yerr=y.half_width(),
        fmt=marker,
        color=color,
        markersize=11 if marker == "*" else 6,
        elinewidth=0.8,
        capsize=2,
    )
    return x.mean, y.mean
