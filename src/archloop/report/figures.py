"""The report's interactive plots, as Plotly figures of the verdict on a study."""

import math
from typing import Any

import plotly.graph_objects as go

from archloop.findings.verdict import Row, Verdict
from archloop.ranking.budgets import Budget, limited
from archloop.report.layout import describe
from archloop.store.record import StudyRecord

_INK, _GRID, _FRONT, _REST = "#26323f", "#e3e7ec", "#1f5fbf", "#8793a0"
_LOOKS = {
    "dominated": (_REST, 8, "circle"),
    "tied": (_FRONT, 9, "circle-open"),
    "front": (_FRONT, 11, "circle"),
}
"""Solid: on the front; hollow: tied; grey: dominated."""
_OVER = "#c0392b"
_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"


def planes(study: StudyRecord, found: Verdict | None) -> dict[str, go.Figure]:
    """The first objective against each other one, by the other's name, with 95% intervals."""
    if found is None:
        return {}
    first, *others = found.reference.place.estimates
    return {other: _plane(study, found, first, other) for other in others}


def _plane(study: StudyRecord, found: Verdict, first: str, other: str) -> go.Figure:
    figure = _figure(other, first)
    groups: dict[str, list[Row]] = {"dominated": [], "tied": [], "front": []}
    for row in found.by_latency:
        groups[found.status(row)].append(row)
    names = {"tied": "tied" if found.ranks_quality else "not ranked"}
    for status, (color, size, symbol) in _LOOKS.items():
        if groups[status]:
            points = _points(names.get(status, status), groups[status], first, other, color, size)
            points.marker.symbol = symbol
            figure.add_trace(points)
    doubtful = [row for row in found.by_latency if row.may_break or row.trial.straddles]
    if doubtful:
        ring = _points("may break a budget", doubtful, first, other, _OVER, 17)
        ring.update(mode="markers", error_x=None, error_y=None, hoverinfo="skip", text=None)
        ring.update(hovertemplate=None)
        ring.marker.symbol = "square-open"
        figure.add_trace(ring)
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
                customdata=[t.number for t in lost],
            )
        )
    marks = _points("reference run", [found.reference], first, other, _OVER, 13)
    marks.marker.symbol = "star"
    figure.add_trace(marks)
    return figure


def budgets(study: StudyRecord) -> go.Figure | None:
    """Each limited figure of each trial over its limit, which is a line at 1; None without any."""
    limits = [Budget.model_validate(budget) for budget in study.recipe.get("budgets", ())]
    found: dict[str, list[tuple[int, float, bool]]] = {}
    for trial in study.trials:
        for figure in limited(trial.profiles, limits):
            share = math.exp(figure.logs.mean) / figure.budget.limit
            is_over = trial.state == "rejected" and share > 1
            relative = ", x reference" if figure.budget.relative else ""
            label = f"{figure.budget.metric}<br>{figure.context}, {figure.target}{relative}"
            found.setdefault(label, []).append((trial.number, share, is_over))
    if not found:
        return None
    drawn = _figure("share of the limit", "")
    for is_over, name in ((False, "kept"), (True, "broken")):
        points = [
            (label, *point)
            for label, points in found.items()
            for point in points
            if point[2] is is_over
        ]
        if points:
            drawn.add_trace(
                go.Scatter(
                    x=[share for _, _, share, _ in points],
                    y=[label for label, *_ in points],
                    mode="markers",
                    marker={
                        "size": 9,
                        "color": _OVER if is_over else _FRONT,
                        "symbol": "x" if is_over else "circle-open",
                    },
                    customdata=[number for _, number, _, _ in points],
                    hovertemplate="trial %{customdata}: %{x:.3f} of the limit<extra></extra>",
                    name=name,
                )
            )
    drawn.add_vline(x=1.0, line={"color": _OVER, "width": 1.5, "dash": "dash"})
    drawn.update_yaxes(automargin=True)
    drawn.update_layout(height=130 + 44 * len(found))
    return drawn


def lineage(study: StudyRecord) -> go.Figure | None:
    """First objective by trial, with a line from each parent; None before two are trained."""
    first = study.objectives[0].name
    at = {
        t.number: t.by_rung[0].mean(first)
        for t in study.trials
        if t.by_rung and not t.diverged and first in t.by_rung[0].values
    }
    if len(at) < 2:
        return None
    drawn = _figure("trial", first)
    xs: list[int | None] = []
    ys: list[float | None] = []
    for trial in study.trials:
        for parent in trial.parents:
            if trial.number in at and parent in at and trial.replicates is None:
                xs += [parent, trial.number, None]
                ys += [at[parent], at[trial.number], None]
    if xs:
        line = {"color": _REST, "width": 1}
        drawn.add_trace(
            go.Scatter(x=xs, y=ys, mode="lines", line=line, name="parent", hoverinfo="skip")
        )
    origins: dict[str, list[int]] = {}
    for trial in study.trials:
        if trial.number in at:
            origins.setdefault(trial.origin, []).append(trial.number)
    symbols = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon")
    for index, (origin, numbers) in enumerate(sorted(origins.items())):
        drawn.add_trace(
            go.Scatter(
                x=numbers,
                y=[at[number] for number in numbers],
                mode="markers",
                marker={"size": 9, "color": _FRONT, "symbol": symbols[index % len(symbols)]},
                customdata=numbers,
                hovertemplate="trial %{x}: %{y:.3f}<extra></extra>",
                name=origin,
            )
        )
    return drawn


def by_target(study: StudyRecord) -> dict[str, go.Figure]:
    """For each of several targets, the first objective against request latency on it alone."""
    if study.reference is None or len(study.reference.profiles) < 2:
        return {}
    first = study.objectives[0].name
    return {target: _on_target(study, target, first) for target in study.reference.profiles}


def _on_target(study: StudyRecord, target: str, first: str) -> go.Figure:
    drawn = _figure(f"request latency on {target}, x reference", first)
    points = [
        (trial.number, profile.latency_ratio, trial.by_rung[0].mean(first))
        for trial in study.trials
        if trial.by_rung
        and not trial.diverged
        and first in trial.by_rung[0].values
        and (profile := trial.profiles.get(target))
    ]
    kept = [(number, ratio, y) for number, ratio, y in points if ratio is not None]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [ratio.high - ratio.value for _, ratio, _ in kept],
        "arrayminus": [ratio.value - ratio.low for _, ratio, _ in kept],
        "thickness": 1,
        "color": _FRONT,
    }
    drawn.add_trace(
        go.Scatter(
            x=[ratio.value for _, ratio, _ in kept],
            y=[y for _, _, y in kept],
            error_x=bars,
            mode="markers",
            marker={"size": 9, "color": _FRONT},
            customdata=[number for number, _, _ in kept],
            hovertemplate="trial %{customdata}: %{x:.3f}<extra></extra>",
            name=target,
        )
    )
    return drawn


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


def losses(study: StudyRecord, front: list[int]) -> go.Figure | None:
    """Loss of every trial at rung 0, those on the front in colour; None where none was trained."""
    if all(trial.rung(0) is None for trial in study.trials):
        return None
    figure = _figure("training step", "loss (nats, text and tasks added)")
    for best in (False, True):
        points: list[tuple[int | None, float | None, int | None]] = []
        for trial in study.trials:
            rung = trial.rung(0)
            if rung is not None and (trial.number in front) is best:
                points += [(step, loss, trial.number) for step, loss in rung.losses]
                points.append((None, None, None))
        # One trace with gaps: a browser takes half a minute to draw hundreds of them.
        steps, values, numbers = zip(*points, strict=True) if points else ((), (), ())
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=values,
                mode="lines",
                line={"color": _FRONT if best else _REST, "width": 2 if best else 1},
                customdata=numbers,
                hovertemplate="trial %{customdata}, step %{x}: %{y:.3f}<extra></extra>",
                showlegend=False,
            )
        )
    return figure


def to_json(figure: go.Figure) -> str:
    """What the page's script draws: data and layout as JSON that may stand inside a script."""
    text: str = figure.to_json()
    return text.replace("<", "\\u003c")


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
        customdata=[row.trial.number for row in rows],
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
            "margin": {"l": 56, "r": 12, "t": 40, "b": 52},
            "height": 380,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": {**axis, "title": {"text": x_title}, "automargin": True},
            "yaxis": {**axis, "title": {"text": y_title}, "automargin": True},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "hoverlabel": {"font": {"family": _FONT}},
        }
    )
