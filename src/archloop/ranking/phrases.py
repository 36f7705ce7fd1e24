"""Budgets and objectives in the words of a command line, and nothing more than a recipe can say.

>>> str(budget("decode_p50_ms <= 1.1x at 1024 on phone"))
'decode_p50_ms <= 1.1 x reference at 1024 on phone'
>>> budget("peak_memory_bytes <= 2GiB").limit
2147483648.0
>>> objective("prefill_tok_per_s").direction
'maximize'
"""

import re
from typing import get_args

from pydantic import ValidationError

from archloop.errors import UserError, reason, suggest
from archloop.ranking.budgets import Budget, Metric
from archloop.ranking.objectives import MEASURED, OBJECTIVES, has_contexts
from archloop.ranking.record import QUALITY, Objective

_BUDGET = re.compile(
    r"\s*(?P<metric>\w+)\s*<=\s*(?P<limit>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>[A-Za-z]*)"
    r"(?P<reference>\s+reference)?(?:\s+at\s+(?P<context>[0-9]+))?(?:\s+on\s+(?P<target>\S+))?\s*"
)
_UNITS = {
    "ms": {"": 1.0, "ms": 1.0, "s": 1e3},
    "bytes": {"": 1.0, "B": 1.0, "MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30},
}
"""What a limit may be given in, by the last word of the metric's name."""
_MORE_IS_BETTER = ("prefill_tok_per_s",)


def budget(text: str) -> Budget:
    """A budget from ``<metric> <= <limit><unit> [at <context>] [on <target>]``.

    The unit is ``x`` for a ratio to the reference preset, else one of the metric's own.

    Raises:
        UserError: it is no such text, or names no metric or unit.
    """
    found = _BUDGET.fullmatch(text)
    if found is None:
        raise UserError(
            f"budget {text!r}: give <metric> <= <limit>, as in 'decode_p50_ms <= 12 at 4096', or "
            "'ttft_ms <= 1.1x' for a ratio to the reference"
        )
    metric, unit = found["metric"], found["unit"]
    known = get_args(Metric)
    if metric not in known:
        raise UserError(f"budget {text!r}: no metric {metric!r}; {suggest(metric, known)}")
    units = _UNITS[metric.rpartition("_")[2]]
    if unit not in ("x", *units):
        named = ", ".join(filter(None, ("x", *units)))
        raise UserError(f"budget {text!r}: {metric} is in none of {unit}; give {named}")
    try:
        return Budget.model_validate(
            {
                "metric": metric,
                "limit": float(found["limit"]) * units.get(unit, 1.0),
                "relative": unit == "x",
                "context": None if found["context"] is None else int(found["context"]),
                "target": found["target"],
            }
        )
    except ValidationError as error:
        what = reason(error.errors(include_url=False)[0])
        raise UserError(f"budget {text!r}: the limit {what}") from error
    except ValueError as error:
        raise UserError(f"budget {text!r}: {found['limit']!r} is no number") from error


def objective(text: str) -> Objective:
    """An objective from a figure's name; ``<figure>@worst`` takes the worst of its contexts.

    Raises:
        UserError: there is no such figure.
    """
    figure, _, contexts = text.partition("@")
    if contexts not in ("", "mean", "worst"):
        raise UserError(f"objective {text!r}: after @ comes mean or worst")
    known = next((each for each in OBJECTIVES if each.name == figure), None)
    if known is not None and contexts in ("", "mean"):
        return known
    if contexts == "worst" and not has_contexts(figure):
        raise UserError(
            f"objective {text!r}: {figure} is not known by context; leave out @worst, or give "
            "ttft_ms@worst and decode_p50_ms@worst"
        )
    if not figure.startswith(f"{QUALITY}:") and figure not in MEASURED:
        names = [QUALITY, *MEASURED]
        raise UserError(
            f"objective {text!r}: no such figure; {suggest(figure, names)} "
            f"({QUALITY}:<category> is one too)"
        )
    more = figure in _MORE_IS_BETTER or figure.startswith(QUALITY)
    return Objective(
        name=text.replace("@", "-"),
        direction="maximize" if more else "minimize",
        figure=figure,
        contexts="worst" if contexts == "worst" else "mean",
    )
