"""The report's interactive plots, as Plotly figures over the summary's data."""

from typing import Any

import plotly.graph_objects as go

from archloop.ranking.record import Objectives
from archloop.report import summary
from archloop.report.layout import describe
from archloop.store.record import (
    StudyRecord,
    TrialRecord,
)

_INK, _GRID, _FRONT, _REST = "#26323f", "#e3e7ec", "#1f5fbf", "#9aa5b1"
_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


def front(study: StudyRecord, rung: int, cost: str) -> go.Figure:
    """Quality against one cost (``latency`` or ``memory``), with 95% error bars, at one rung."""
    entries = summary.at_rung(study, rung)
    chosen = set(summary.front_numbers(study, rung))
    figure = _figure(f"{cost} relative to the reference (lower is better)", "quality")
    dominated = [(t, o) for t, r, o in entries if t.number not in chosen and not r.diverged]
    diverged = [(t, o) for t, r, o in entries if r.diverged]
    best = sorted(((t, o) for t, _, o in entries if t.number in chosen), key=lambda e: e[1].latency)
    figure.add_trace(_points("dominated", dominated, cost, color=_REST, size=8))
    figure.add_trace(_points("front", best, cost, color=_FRONT, size=11))
    if diverged:
        marks = _points("diverged", diverged, cost, color=_REST, size=8)
        marks.marker.symbol = "x"
        figure.add_trace(marks)
    reference = _reference_at(study, rung)
    if reference is not None:
        marks = _points("reference preset", [reference], cost, color="#c0392b", size=13)
        marks.marker.symbol = "star"
        figure.add_trace(marks)
    return figure


def hypervolume(study: StudyRecord) -> go.Figure:
    """Hypervolume of rung 0's front against trials."""
    figure = _figure("trial", "hypervolume")
    curve = summary.hypervolume_curve(study)
    figure.add_trace(
        go.Scatter(
            x=[number for number, _ in curve],
            y=[value for _, value in curve],
            mode="lines+markers",
            line={"shape": "hv", "color": _FRONT, "width": 2},
            marker={"size": 6},
            name="hypervolume",
            showlegend=False,
        )
    )
    return figure


def losses(study: StudyRecord) -> go.Figure:
    """Training loss of every trial, those on the front in colour."""
    chosen = set(summary.front_numbers(study, 0))
    figure = _figure("training step", "loss (nats, text and tasks added)")
    for trial, rung, _ in summary.at_rung(study, 0):
        best = trial.number in chosen
        figure.add_trace(
            go.Scatter(
                x=[step for step, _ in rung.losses],
                y=[loss for _, loss in rung.losses],
                mode="lines",
                line={"color": _FRONT if best else _REST, "width": 2 if best else 1},
                name=f"trial {trial.number}",
                showlegend=False,
            )
        )
    return figure


def to_html(figure: go.Figure) -> str:
    """The figure as a div; the page carries plotly.js once."""
    config = {"displayModeBar": False, "responsive": True}
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return html


def _points(
    name: str, entries: list[tuple[TrialRecord, Objectives]], cost: str, color: str, size: int
) -> go.Scatter:
    def bars(field: str) -> dict[str, Any]:
        widths = [1.96 * getattr(o, f"{field}_se") for _, o in entries]
        return {"type": "data", "array": widths, "thickness": 1, "width": 3, "color": color}

    return go.Scatter(
        x=[getattr(o, cost) for _, o in entries],
        y=[o.quality for _, o in entries],
        error_x=bars(cost),
        error_y=bars("quality"),
        mode="markers+text" if name == "front" else "markers",
        textposition="top center",
        marker={"size": size, "color": color, "line": {"color": "white", "width": 1}},
        name=name,
        text=[str(trial.number) for trial, _ in entries],
        hovertext=[_hover(trial, o) for trial, o in entries],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _hover(trial: TrialRecord, objectives: Objectives) -> str:
    head = "reference preset" if trial.number < 0 else f"trial {trial.number}"
    return (
        f"<b>{head}</b><br>{describe(trial.spec)}<br>quality {objectives.quality:.3f}"
        f"<br>latency {objectives.latency:.3f} x<br>memory {objectives.memory:.3f} x"
    )


def _reference_at(study: StudyRecord, rung: int) -> tuple[TrialRecord, Objectives] | None:
    if study.reference is None:
        return None
    for entry in study.reference.rungs:
        if entry.index == rung and entry.objectives is not None:
            return study.reference, entry.objectives
    return None


def _figure(x_title: str, y_title: str) -> go.Figure:
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": _GRID, "ticks": "outside"}
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": _FONT, "size": 13, "color": _INK},
            "margin": {"l": 64, "r": 16, "t": 24, "b": 56},
            "height": 380,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": {**axis, "title": {"text": x_title}},
            "yaxis": {**axis, "title": {"text": y_title}},
            "legend": {"orientation": "h", "y": 1.12, "x": 0},
            "hoverlabel": {"font": {"family": _FONT}},
        }
    )
