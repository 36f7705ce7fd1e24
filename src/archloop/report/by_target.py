"""What each of several targets says of a study's stacks: as plain data, and as lines."""

from collections.abc import Iterator
from typing import Any

from archloop.findings.targets import ByTarget, Disagreement, fastest
from archloop.findings.verdict import Verdict

MOST = 5
"""Disagreements told in lines; the plain data has all."""


def plain(found: ByTarget | None) -> dict[str, Any] | None:
    """For programs; None of a study of one target."""
    if found is None:
        return None
    return {
        "targets": {
            name: {
                "front": [row.trial.number for row in one.front] if one else [],
                "tied": _tied(one) if one else [],
                "unranked": list(one.comparison.unranked) if one else [],
                "fastest": fastest(one).trial.number if one else None,
                "latency": {
                    str(row.trial.number): row.place.estimates["latency"].mean for row in one.rows
                }
                if one
                else {},
                "left_out": {str(k): v for k, v in found.left_out[name].items()},
            }
            for name, one in found.verdicts.items()
        },
        "disagreements": [each._asdict() for each in found.disagreements],
    }


def lines(found: ByTarget) -> Iterator[str]:
    """Who is on the front of each target alone, who is fastest there, where targets disagree.

    None of a study that has no scored trial yet.
    """
    if not any(found.verdicts.values()):
        return
    for name, one in found.verdicts.items():
        if one is None:
            yield f"on {name} alone: no trial is scored there"
            continue
        first = fastest(one)
        ratio = first.place.estimates["latency"]
        left_out = len(found.left_out[name])
        yield (
            f"on {name} alone: {_places(one)}; fastest "
            f"{first.trial.number} ({ratio.mean:.3f} \u00b1 {ratio.half_width():.3f} x reference)"
            + (f"; {left_out} could not run there" if left_out else "")
        )
    if not found.disagreements:
        yield "no two stacks are told apart in opposite order by two targets"
    for each in found.disagreements[:MOST]:
        yield _in_words(each)
    if (more := len(found.disagreements) - MOST) > 0:
        yield f"and {more} more pairs on which targets disagree"


def _places(found: Verdict) -> str:
    if not found.ranks_quality:
        return "quality is not ranked"
    front = ", ".join(str(row.trial.number) for row in found.front) or "nobody for certain"
    tied = ", ".join(map(str, _tied(found)))
    return f"on the front {front}" + (f"; tied {tied}" if tied else "")


def _tied(found: Verdict) -> list[int]:
    return [row.trial.number for row in found.by_latency if found.status(row) == "tied"]


def _in_words(pair: Disagreement) -> str:
    return (
        f"targets disagree: {pair.one} is faster than {pair.other} on "
        f"{', '.join(pair.one_faster_on)}, slower on {', '.join(pair.other_faster_on)}"
    )
