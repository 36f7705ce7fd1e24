"""Contributions as a still picture: a panel for each objective, and the Shapley values beside."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from archloop.findings.attribution import Attribution
from archloop.report.static import check

_CLEAR, _UNCLEAR, _INK = "#1f5fbf", "#9aa5b1", "#26323f"


def write(found: Attribution, name: str, path: Path) -> None:
    """Draw the families' contributions and shares into a file; its suffix says the format.

    Args:
        found: what is drawn.
        name: of the study.
        path: ends in svg, png or pdf.

    Raises:
        UserError: the suffix is none of these.
        OSError: the file cannot be written.
    """
    check(path)
    families = [each for each in found.contributions if each.factor == "family"]
    objectives = list(dict.fromkeys(each.objective for each in families))
    with mpl.rc_context({"svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=(3.4 * (len(objectives) + 1), 3.6), layout="constrained")
        panels = figure.subplots(1, len(objectives) + 1, squeeze=False)[0]
        for axes, objective in zip(panels, objectives, strict=False):
            rows = [each for each in families if each.objective == objective]
            _panel(axes, [(e.what, e.value, e.low, e.high, e.is_clear) for e in rows])
            axes.set_title(f"{objective}: one block more of", fontsize=9, color=_INK)
        shares = [(s.family, s.value, s.low, s.high, s.low > 0) for s in found.shares]
        _panel(panels[-1], shares)
        panels[-1].set_title("share of the hypervolume", fontsize=9, color=_INK)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Axes, rows: list[tuple[Any, ...]]) -> None:
    for place, (_, value, low, high, is_clear) in enumerate(rows):
        color = _CLEAR if is_clear else _UNCLEAR
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot(value, place, "o", color=color)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [str(row[0]) for row in rows])
    axes.invert_yaxis()
