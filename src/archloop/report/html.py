"""The study as one self-contained HTML file that opens offline.

Most of its size are the library that draws its plots and the pages of hundreds of trials. Both are
in it compressed, and the page's script unpacks them.
"""

import base64
import gzip
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from archloop.files import write_atomic
from archloop.findings.floors import FAIR, floors
from archloop.findings.targets import by_target
from archloop.findings.verdict import Verdict, unranked, verdict
from archloop.profiling.record import Interval
from archloop.ranking.estimate import Estimate
from archloop.report import figures, summary, trials
from archloop.report.attributed import attributed
from archloop.report.by_target import lines
from archloop.report.glossary import GLOSSARY
from archloop.report.layout import curve, describe, svg
from archloop.report.measures import quality_in_words
from archloop.report.palette import colour, distinct, label
from archloop.report.top import noise_floor, top
from archloop.store.record import StudyRecord

NEVER_TRAINED = "never trained, as the study's own budgets rejected it"
"""Of a stack that keeps the budgets at hand, which are others than the study's."""


def render(study: StudyRecord, folder: str | None = None, *, is_running: bool = False) -> str:
    """The page's text.

    Args:
        study: as it was read.
        folder: of the study, for commands to copy; default: where `search` puts it.
        is_running: it goes on, so the page loads itself anew every half minute.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("archloop.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        svg=lambda spec: Markup(svg(spec)),
        curve=lambda rung: Markup(curve(rung.losses)),
        words=describe,
        settings=trials.settings,
        genes=trials.genes,
        interval=interval,
        mib=mib,
        estimate=estimate,
        duration=duration,
        count=count,
        packed=packed,
    )
    sources = {
        name: Markup(environment.loader.get_source(environment, file)[0])
        for name, file in (("css", "report.css"), ("js", "report.js"))
        if environment.loader is not None
    }
    context = _context(study, folder or f"runs/{study.name}")
    template = environment.get_template("report.html")
    return template.render(**context, **sources, is_running=is_running).lstrip()


def write(
    study: StudyRecord, path: Path, folder: str | None = None, *, is_running: bool = False
) -> Path:
    """Render to a file, complete or not at all; arguments as `render`."""
    with distinct(study.mixers):
        write_atomic(path, render(study, folder, is_running=is_running).encode())
    return path


def packed(text: str) -> str:
    """Text compressed by gzip, in base64; the same bytes each time."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


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


def _context(study: StudyRecord, folder: str) -> dict[str, Any]:
    facts = summary.summarize(study)
    found = verdict(study)
    why = None if found is None else unranked(study, found)
    shown = trials.shown(study, found)
    planes = figures.planes(study, found)
    targets, alone = figures.by_target(study), by_target(study)
    plots = {
        **planes,
        "budgets": figures.budgets(study),
        "hypervolume": figures.hypervolume(facts["hypervolume"]["growth"]),
        "lineage": figures.lineage(study),
        "losses": figures.losses(study, facts["front"]),
        **{f"target-{name}": figure for name, figure in targets.items()},
    }
    objectives = [each.name for each in study.objectives]
    return {
        "study": study,
        "facts": facts,
        "facts_on_top": list(_facts(study)),
        "top": top(study, found, folder),
        "folder": folder,
        "headline": headline(study, found),
        "quality_in_words": quality_in_words(study),
        "not_ranked": "" if why is None else why.words,
        "library": get_plotlyjs(),
        "attributed": attributed(study),
        "found": found,
        "planes": list(planes),
        "floors": floors(study),
        "fair": FAIR,
        "targets": list(targets),
        "by_target": [] if alone is None else list(lines(alone)),
        "plots": {
            name: {"json": Markup(figures.to_json(figure)), "height": figure.layout.height}
            for name, figure in plots.items()
            if figure is not None
        },
        "shown": shown,
        "most_rows": _MOST_ROWS,
        "statuses": list(dict.fromkeys(each.status for each in shown)),
        "objectives": objectives,
        "measured": _MEASURED,
        "columns": _columns(objectives),
        "diverged": [t for t in study.trials if t.state == "complete" and not t.reached],
        "rejected": [t for t in study.trials if t.state == "rejected"],
        "never_trained": NEVER_TRAINED,
        "unsupported": [t for t in study.trials if t.state == "unsupported"],
        "damaged": [t for t in (study.reference, *study.trials) if t is not None and t.damaged],
        "failed": [t for t in study.trials if t.state == "failed"],
        "legend": [(name, label(name), colour(name)) for name in study.mixers],
        "recipe": yaml.safe_dump(study.recipe, sort_keys=False),
        "environment": list(_flat(study.environment)),
        "phases": sorted(study.seconds_by_phase.items(), key=lambda item: -item[1]),
        "glossary": GLOSSARY,
    }


def _columns(objectives: list[str]) -> list[tuple[str, bool]]:
    """Heads of the table of trials, and whether each column is of words."""
    return [
        *(("trial", True), ("layout", True), ("place", True)),
        *((name, False) for name in objectives),
        *(("TTFT ms", False), ("decode ms", False), ("peak MiB", False)),
        *(("parameters", False), ("origin", True)),
    ]


_MOST_ROWS = 40
"""Trials that the table shows at once; of more, the best until a reader asks for all."""
_MEASURED = (("ttft_ms", 1, 1.0), ("decode_p50_ms", 2, 1.0), ("peak_memory_bytes", 0, 2.0**20))
"""Figures of the table: field, digits, and how many of its units make one of the column's."""


def _facts(study: StudyRecord) -> Iterator[str]:
    """What the figures rest on: devices and engines, versions, the noise floor, today's date."""
    if study.reference is not None:
        for target, profile in study.reference.profiles.items():
            identity = profile.identity
            engine = f"{identity.runtime} {identity.runtime_version}, {identity.quant}"
            yield f"{target}: {identity.device}; {engine}; {identity.in_threads}"
    yield f"written {datetime.now().astimezone():%Y-%m-%d %H:%M}"
    for key in ("archloop", "commit", "seed"):
        if key in study.environment:
            yield f"{key} {study.environment[key]}"
    if floor := noise_floor(study):
        yield f"noise floor, 95%: {floor}"


def _flat(values: Mapping[str, Any], stem: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines: ``targets, here, processor``."""
    for key, value in values.items():
        name = f"{stem}, {key}" if stem else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            yield name, str(value)


def headline(study: StudyRecord, found: Verdict | None) -> str:
    """The result in a sentence."""
    candidates = [trial for trial in study.trials if trial.replicates is None]
    states = [trial.state for trial in candidates]
    broke = sum(bool(trial.broken) for trial in candidates)
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
            f"{name} {readings.mean:.3g}" for name, readings in study.reference_point.values.items()
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
            f"{statuses.count('front')} of {len(statuses)} trained on the front beyond doubt",
            f"{statuses.count('tied')} tied",
            f"{statuses.count('dominated')} dominated",
        ]
    else:
        counts = ["quality is not ranked"]
    return [*counts, f"reliability {reliability}"]
