"""The study as one self-contained HTML file that opens offline."""

from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from archloop.files import write_atomic
from archloop.findings.verdict import Row, Verdict, ranking_would_take, verdict
from archloop.profiling.record import Interval
from archloop.ranking.estimate import Estimate
from archloop.report import figures, summary
from archloop.report.layout import describe, svg
from archloop.report.measures import quality_in_words
from archloop.report.palette import colour, distinct, label
from archloop.report.telling import telling
from archloop.store.record import StudyRecord


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
        estimate=estimate,
        duration=duration,
        count=count,
    )
    template = environment.get_template("report.html")
    return template.render(**_context(study))


def write(study: StudyRecord, path: Path) -> Path:
    """Render to a file, complete or not at all."""
    with distinct(study.mixers):
        write_atomic(path, render(study).encode())
    return path


def interval(value: Interval | None, digits: int = 2) -> str:
    """``1.23 [1.20, 1.26]``, or a dash."""
    if value is None:
        return "-"
    return f"{value.value:,.{digits}f} [{value.low:,.{digits}f}, {value.high:,.{digits}f}]"


def estimate(value: Estimate) -> str:
    """``0.603 ± 0.022``, half a 95% interval; without it where the value holds by definition."""
    half = value.half_width()
    return f"{value.mean:.3f} ± {half:.3f}" if half else f"{value.mean:.3f}"


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
    found = verdict(study)
    return {
        "study": study,
        "facts": facts,
        "headline": headline(study, found),
        "quality_in_words": quality_in_words(study),
        "not_ranked": ""
        if found is None or found.ranks_quality
        else ranking_would_take(study, found),
        "plotly_js": Markup(get_plotlyjs()),
        "found": found,
        "plots": [_markup(plot) for plot in figures.planes(study, found)],
        "hypervolume": _markup(figures.hypervolume(facts["hypervolume"]["growth"])),
        "losses": _markup(figures.losses(study, facts["front"])),
        "compared": _compared(found),
        "diverged": [t for t in study.trials if t.state == "complete" and not t.reached],
        "rejected": [t for t in study.trials if t.state == "rejected"],
        "unsupported": [t for t in study.trials if t.state == "unsupported"],
        "damaged": [t for t in (study.reference, *study.trials) if t is not None and t.damaged],
        "failed": [t for t in study.trials if t.state == "failed"],
        "legend": [(name, label(name), colour(name)) for name in study.mixers],
        "recipe": yaml.safe_dump(study.recipe, sort_keys=False),
        "phases": sorted(study.seconds_by_phase.items(), key=lambda item: -item[1]),
    }


def _compared(found: Verdict | None) -> list[tuple[Row, str, str]]:
    """Rows with their place and what tells them from rows of the same layout."""
    if found is None:
        return []
    order = {"front": 0, "tied": 1, "dominated": 2}
    rows = sorted(found.by_latency, key=lambda row: order[found.status(row)])
    rows = [found.reference, *(rows if found.ranks_quality else found.by_latency)]
    words = telling([row.trial.spec for row in rows])
    return [
        (row, found.place_in_words(row) if found.ranks_quality else "not ranked", differs)
        for row, differs in zip(rows, words, strict=True)
    ]


def headline(study: StudyRecord, found: Verdict | None) -> str:
    """The result in a sentence."""
    states = [trial.state for trial in study.trials]
    broke = sum(bool(trial.broken) for trial in study.trials)
    parts = [f"{broke} of {len(states)} candidates broke a device budget before any training"]
    if states.count("unsupported"):
        parts.append(f"{states.count('unsupported')} cannot run on a required target")
    if states.count("failed"):
        parts.append(f"{states.count('failed')} failed")
    if found is not None:
        parts += _findings(found)
    text = "; ".join(parts)
    if found is not None and study.reference_point is not None:
        volume = found.comparison.volume
        point = ", ".join(
            f"{name} {readings.mean:g}" for name, readings in study.reference_point.values.items()
        )
        text += (
            f". Hypervolume {volume.mean:.4f} [{volume.low:.4f}, {volume.high:.4f}] against the "
            f"reference point {point}"
        )
    return text + "."


def _findings(found: Verdict) -> list[str]:
    """How many stacks stand where."""
    reliability = ", ".join(
        f"{share:.2f} {name}" for name, share in found.comparison.reliability.items()
    )
    statuses = [found.status(row) for row in found.rows]
    if found.ranks_quality:
        counts = [
            f"{statuses.count('front')} of {len(statuses)} trained are on the front beyond doubt",
            f"{statuses.count('tied')} are tied",
            f"{statuses.count('dominated')} are dominated",
        ]
    else:
        counts = ["quality is not ranked"]
    return [*counts, f"reliability {reliability}"]


def _markup(figure: Any) -> Any:
    return Markup(figures.to_html(figure))
