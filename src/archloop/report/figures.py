"""The report's interactive plots, as Plotly figures of the verdict on a study."""

from typing import Any

import plotly.graph_objects as go

from archloop.findings.verdict import Row, Verdict
from archloop.report.layout import describe
from archloop.store.record import StudyRecord

_INK, _GRID, _FRONT, _REST = "#26323f", "#e3e7ec", "#1f5fbf", "#9aa5b1"
_LOOKS = {"dominated": (_REST, 8), "tied": ("#6f9bd8", 9), "front": (_FRONT, 11)}
_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


def planes(study: StudyRecord, found: Verdict | None) -> list[go.Figure]:
    """The first objective against each other one, with 95% intervals."""
    if found is None:
        return []
    first, *others = found.reference.place.estimates
    return [_plane(study, found, first, other) for other in others]


def _plane(study: StudyRecord, found: Verdict, first: str, other: str) -> go.Figure:
    figure = _figure(other, first)
    groups: dict[str, list[Row]] = {"dominated": [], "tied": [], "front": []}
    for row in found.by_latency:
        groups[found.status(row) if found.ranks_quality else "tied"].append(row)
    names = {"tied": "tied" if found.ranks_quality else "not ranked"}
    for status, (color, size) in _LOOKS.items():
        if groups[status]:
            name = names.get(status, status)
            figure.add_trace(_points(name, groups[status], first, other, color, size))
    lost = [t for t in study.trials if t.state == "complete" and not t.reached]
    if lost:
        figure.add_trace(
            go.Scatter(
                x=[t.by_rung[0].mean(other) for t in lost],
                y=[t.by_rung[0].mean(first) for t in lost],
                mode="markers",
                marker={"size": 8, "color": _REST, "symbol": "x"},
                name="diverged",
                text=[str(t.number) for t in lost],
            )
        )
    marks = _points("reference run", [found.reference], first, other, "#c0392b", 13)
    marks.marker.symbol = "star"
    figure.add_trace(marks)
    return figure


def hypervolume(growth: list[dict[str, float]]) -> go.Figure:
    """Hypervolume of the front with its 95% interval against trials."""
    figure = _figure("trial", "hypervolume")
    numbers = [point["trial"] for point in growth]
    for end, fill in (("high", None), ("low", "tonexty")):
        figure.add_trace(
            go.Scatter(
                x=numbers,
                y=[point[end] for point in growth],
                mode="lines",
                line={"width": 0},
                fill=fill,
                fillcolor="rgba(31,95,191,0.15)",
                showlegend=False,
                hoverinfo="skip",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=numbers,
            y=[point["mean"] for point in growth],
            mode="lines+markers",
            line={"color": _FRONT, "width": 2},
            marker={"size": 6},
            name="hypervolume",
            showlegend=False,
        )
    )
    return figure


def losses(study: StudyRecord, front: list[int]) -> go.Figure:
    """Training loss of every trial at rung 0, those on the front in colour."""
    figure = _figure("training step", "loss (nats, text and tasks added)")
    for trial in study.trials:
        best, rung = trial.number in front, trial.rung(0)
        if rung is None:
            continue
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
    name: str, rows: list[Row], first: str, other: str, color: str, size: int
) -> go.Scatter:
    def bars(objective: str) -> dict[str, Any]:
        widths = [row.place.estimates[objective].half_width() for row in rows]
        return {"type": "data", "array": widths, "thickness": 1, "width": 3, "color": color}

    return go.Scatter(
        x=[row.place.estimates[other].mean for row in rows],
        y=[row.place.estimates[first].mean for row in rows],
        error_x=bars(other),
        error_y=bars(first),
        mode="markers+text" if name == "front" else "markers",
        textposition="top center",
        marker={"size": size, "color": color, "line": {"color": "white", "width": 1}},
        name=name,
        text=[str(row.trial.number) for row in rows],
        hovertext=[_hover(row) for row in rows],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _hover(row: Row) -> str:
    head = "reference run" if row.trial.number < 0 else f"trial {row.trial.number}"
    values = "<br>".join(f"{name} {e.mean:.3f}" for name, e in row.place.estimates.items())
    return f"<b>{head}</b><br>{describe(row.trial.spec)}<br>{values}"


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
