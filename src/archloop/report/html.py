"""The study as one self-contained HTML file that opens offline."""

from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from archloop.files import write_atomic
from archloop.profiling.record import Interval
from archloop.report import figures, summary
from archloop.report.layout import describe, svg
from archloop.report.palette import colour, label
from archloop.store.record import StudyRecord, TrialRecord


def render(study: StudyRecord) -> str:
    """The page's text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("archloop.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        svg=lambda spec: Markup(svg(spec)),
        words=describe,
        interval=interval,
        mib=mib,
        diverged=summary.diverged,
        duration=duration,
        count=count,
    )
    template = environment.get_template("report.html")
    return template.render(**_context(study))


def write(study: StudyRecord, path: Path) -> Path:
    """Render to a file, complete or not at all."""
    write_atomic(path, render(study).encode())
    return path


def interval(value: Interval | None, digits: int = 2) -> str:
    """``1.23 [1.20, 1.26]``, or a dash."""
    if value is None:
        return "-"
    return f"{value.value:,.{digits}f} [{value.low:,.{digits}f}, {value.high:,.{digits}f}]"


def mib(value: Interval) -> str:
    """Bytes with their interval, in MiB."""
    return interval(Interval(**{end: size / 2**20 for end, size in value}), 1)


def duration(seconds: float) -> str:
    """Seconds as ``1 h 02 min``, ``3 min 05 s`` or ``4.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float) -> str:
    """A count with a unit prefix: 354.5M."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{suffix}"
    return f"{value:.0f}"


def _context(study: StudyRecord) -> dict[str, Any]:
    facts = summary.summarize(study)
    by_number = {trial.number: trial for trial in study.trials}
    mixers = sorted({name for t in study.trials for n in t.spec.layout for name in n.split("+")})
    return {
        "study": study,
        "facts": facts,
        "headline": headline(study),
        "plotly_js": Markup(get_plotlyjs()),
        "rungs": [_rung(study, index) for index in summary.rungs(study)],
        "hypervolume": _markup(figures.hypervolume(study)),
        "losses": _markup(figures.losses(study)),
        "front": [by_number[number] for number in facts["front"]],
        "complete": _ranked([t for t in study.trials if t.state == "complete"], facts["front"]),
        "rejected": [t for t in study.trials if t.state == "rejected"],
        "unsupported": [t for t in study.trials if t.state == "unsupported"],
        "failed": [t for t in study.trials if t.state == "failed"],
        "legend": [(name, label(name), colour(name)) for name in mixers],
        "recipe": yaml.safe_dump(study.recipe, sort_keys=False),
        "stages": sorted(study.seconds_by_stage.items(), key=lambda item: -item[1]),
    }


def headline(study: StudyRecord) -> str:
    """The result in a sentence."""
    states = [trial.state for trial in study.trials]
    numbers = summary.front_numbers(study, 0)
    curve = summary.hypervolume_curve(study)
    broke = sum(bool(trial.broken) for trial in study.trials)
    parts = [
        f"{len(numbers)} of {len(states)} candidates are on the front",
        f"{broke} broke a device budget before any training",
    ]
    if states.count("unsupported"):
        parts.append(f"{states.count('unsupported')} cannot run on a required target")
    if states.count("failed"):
        parts.append(f"{states.count('failed')} failed")
    text = "; ".join(parts)
    if curve and study.reference_point is not None:
        point = study.reference_point
        text += (
            f". Hypervolume {curve[-1][1]:.4f} against the reference point quality "
            f"{point.quality:g}, latency {point.latency:g} x, memory {point.memory:g} x"
        )
    return text + "."


def _rung(study: StudyRecord, index: int) -> dict[str, Any]:
    entries = summary.at_rung(study, index)
    return {
        "index": index,
        "steps": entries[0][1].num_steps if entries else 0,
        "count": len(entries),
        "latency": _markup(figures.front(study, index, "latency")),
        "memory": _markup(figures.front(study, index, "memory")),
        "front": summary.front_numbers(study, index),
    }


def _ranked(trials: list[TrialRecord], front: list[int]) -> list[TrialRecord]:
    order = {number: place for place, number in enumerate(front)}
    return sorted(trials, key=lambda t: (order.get(t.number, len(order)), t.number))


def _markup(figure: Any) -> Any:
    return Markup(figures.to_html(figure))
