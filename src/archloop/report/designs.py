"""Designs of one size as a still picture: what each takes, against the context.

Estimates stand in the upper row, one panel each; what was measured stands below them, with 95%
intervals, where anything was.
"""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from archloop.profiling.record import Interval
from archloop.report.static import check
from archloop.stack.footprint import Footprint

Curve = Mapping[int, Interval]
"""By context, in tokens."""
Measured = Mapping[str, Mapping[str, Curve]]
"""By a figure's name (`MEASURED`), then by design."""

_ESTIMATED = {
    "state_bytes": ("state, MB (estimated)", 1e6),
    "prefill_flops": ("prefill, TFLOP (estimated)", 1e12),
    "decode_flops": ("decode step, GFLOP (estimated)", 1e9),
}
MEASURED = {
    "ttft_ms": ("first token, ms (measured)", 1.0),
    "decode_p50_ms": ("decode step, ms (measured)", 1.0),
    "peak_memory_bytes": ("peak memory, MB (measured)", 1e6),
}
"""By figure: what it is called, and its unit."""
_MARKERS = "osD^v<>PX*"


def write(
    designs: Mapping[str, Footprint], title: str, path: Path, measured: Measured | None = None
) -> None:
    """Draw what designs take, by name, into a file whose suffix says the format.

    Args:
        designs: their estimates.
        title: stands above the panels.
        path: the file.
        measured: their measured figures; a design that was not measured is left out of them.

    Raises:
        UserError: the suffix is none that is drawn.
        OSError: the file cannot be written.
    """
    check(path)
    rows = 2 if measured else 1
    with mpl.rc_context({"svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(13, 1.0 + 3.6 * rows), layout="constrained")
        panels = figure.subplots(rows, len(_ESTIMATED), squeeze=False)
        for axes, (name, (label, unit)) in zip(panels[0], _ESTIMATED.items(), strict=True):
            _panel(axes, _estimates(designs, name), label, unit, list(designs))
        if measured:
            for axes, (name, (label, unit)) in zip(panels[1], MEASURED.items(), strict=True):
                _panel(axes, measured[name], label, unit, list(designs))
        handles, names = panels[0][0].get_legend_handles_labels()
        columns = min(len(names), 6)
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(title, fontsize=10)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _estimates(designs: Mapping[str, Footprint], name: str) -> dict[str, Curve]:
    """A formula's values, which have no spread."""
    return {
        design: {
            context: Interval.point(getattr(estimate, name))
            for context, estimate in found.estimated.items()
        }
        for design, found in designs.items()
    }


def _panel(
    axes: Axes, curves: Mapping[str, Curve], label: str, unit: float, names: list[str]
) -> None:
    """One curve a design; a design has the same colour in every panel."""
    colors = mpl.color_sequences["tab20"]
    for design, curve in curves.items():
        index = names.index(design)
        low = [(at.value - at.low) / unit for at in curve.values()]
        high = [(at.high - at.value) / unit for at in curve.values()]
        axes.errorbar(
            list(curve),
            [at.value / unit for at in curve.values()],
            yerr=[low, high] if any(low + high) else None,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linewidth=1.3,
            capsize=2,
            color=colors[index % len(colors)],
            label=design,
        )
    contexts = sorted({context for curve in curves.values() for context in curve})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts, [_short(context) for context in contexts])
    axes.set_xlabel("context, tokens")
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7ec", linewidth=0.7)
    axes.set_axisbelow(True)


def _short(context: int) -> str:
    return f"{context // 1024}K" if context % 1024 == 0 else str(context)
