"""Designs of one size as a still picture: what each takes, against the context. Estimates only."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from archloop.report.static import check
from archloop.stack.footprint import Footprint

_PANELS = {
    "state_bytes": ("state, MB (estimated)", 1e6),
    "prefill_flops": ("prefill, TFLOP (estimated)", 1e12),
    "decode_flops": ("decode step, GFLOP (estimated)", 1e9),
}
"""By estimate: what it is called, and its unit."""
_MARKERS = "osD^v<>PX*"


def write(designs: Mapping[str, Footprint], title: str, path: Path) -> None:
    """Draw the estimates of designs, by name, into a file whose suffix says the format.

    Raises:
        UserError: the suffix is none that is drawn.
        OSError: the file cannot be written.
    """
    check(path)
    with mpl.rc_context({"svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        panels = figure.subplots(1, len(_PANELS))
        for axes, name in zip(panels, _PANELS, strict=True):
            _panel(axes, designs, name)
        handles, names = panels[0].get_legend_handles_labels()
        columns = min(len(names), 6)
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(title, fontsize=10)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Axes, designs: Mapping[str, Footprint], name: str) -> None:
    label, unit = _PANELS[name]
    colors = mpl.color_sequences["tab20"]
    for index, (design, found) in enumerate(designs.items()):
        values = [getattr(at, name) / unit for at in found.estimated.values()]
        axes.plot(
            list(found.estimated),
            values,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linewidth=1.3,
            color=colors[index % len(colors)],
            label=design,
        )
    contexts = sorted({context for found in designs.values() for context in found.estimated})
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
