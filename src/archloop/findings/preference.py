"""One order from several objectives: by what the user says that each is worth.

A weight is the worth of one unit of gain over the reference run: of a standard deviation over the
anchor stacks in quality, of a halving in what is measured as a ratio. Intervals go along, since a
weighted sum of figures that tie is no better known than they are.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from archloop.errors import UserError, suggest
from archloop.findings.verdict import Row, Verdict
from archloop.ranking.estimate import Estimate, total
from archloop.ranking.record import Objective


class Preferred(NamedTuple):
    """A stack's worth beside the reference run, and whether it is told apart from the best."""

    row: Row
    worth: Estimate
    ties_with_best: bool


def preferred(
    found: Verdict, objectives: tuple[Objective, ...], weights: Mapping[str, float]
) -> list[Preferred]:
    """The stacks that no other is surely better than in everything, the worthiest first.

    Args:
        found: verdict on the study.
        objectives: of the study.
        weights: by the name of an objective; those that are left out are worth nothing.

    Raises:
        UserError: a weight of what is no objective, or a negative one.
    """
    names = [each.name for each in objectives]
    for name, weight in weights.items():
        if name not in names:
            raise UserError(f"weight of {name!r}: no such objective; {suggest(name, names)}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise UserError(f"weight of {name}={weight:g} must be 0 or more")
    chosen = [each for each in objectives if weights.get(each.name, 0.0) > 0]
    if not chosen:
        raise UserError("every weight is 0; give one objective at least a weight above 0")
    factors = [weights[each.name] for each in chosen]
    rows = [row for row in found.rows if row.place.member.status != "dominated"]
    worths = [_worth(row, found.reference, chosen, factors) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: -worths[i].mean)
    result = []
    for index in order:
        best = rows[order[0]]
        difference = _worth(rows[index], best, chosen, factors)
        low, high = difference.interval()
        result.append(Preferred(rows[index], worths[index], index == order[0] or low <= 0 <= high))
    return result


def _worth(row: Row, other: Row, chosen: list[Objective], factors: list[float]) -> Estimate:
    """What a stack is worth beyond another."""
    return total([_gain(row, other, each) for each in chosen], factors)


def _gain(row: Row, other: Row, objective: Objective) -> Estimate:
    """How much better a stack is than another, in standard deviations or in halvings."""
    sign = 1.0 if objective.direction == "maximize" else -1.0
    pair = [each.place.estimates[objective.name] for each in (row, other)]
    if objective.category is None:
        # Logarithms to base 2, whose errors are the relative errors of the ratios.
        pair = [
            each.model_copy(
                update={"mean": math.log2(each.mean), "se": each.se / each.mean / math.log(2)}
            )
            for each in pair
        ]
    return total(pair, [sign, -sign])
