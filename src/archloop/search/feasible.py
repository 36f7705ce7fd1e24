"""How trials ended, in words, and whether any of them is of use."""

from collections.abc import Sequence

from archloop.ranking.record import QUALITY, Objectives
from archloop.search.errors import NoFeasibleTrial
from archloop.search.telling import Finished
from archloop.store.record import Outcome


def require_one(told: Sequence[Finished]) -> None:
    """Refuse a study none of whose trials kept the budgets and trained.

    Args:
        told: its finished trials by number.

    Raises:
        NoFeasibleTrial: that; says which trial came nearest.
    """
    results = [each.result for each in told]
    if any(result.scored for result in results):
        return
    if any(result.diverged for result in results):
        raise NoFeasibleTrial(
            "every trial that kept the budgets diverged in training; lower "
            "proxy.training.learning_rate"
        )
    rejected = [each for each in told if each.result.excess > 0]
    if not rejected:
        error = results[0].error if results else "no trial was run"
        unsupported = all(result.state == "unsupported" for result in results)
        what = "no required target can run any trial" if unsupported else "every trial failed"
        raise NoFeasibleTrial(f"no feasible trial; {what}, the first with: {error}")
    nearest = min(rejected, key=lambda each: (each.result.excess, each.stored.number))
    raise NoFeasibleTrial(
        f"no feasible trial; nearest was trial {nearest.stored.number} "
        f"({' '.join(nearest.stored.candidate.spec.layout)}): {in_words(nearest.result)}"
    )


def in_words(result: Outcome) -> str:
    """How a trial ended, in a few words."""
    if result.broken:
        worst = max(result.broken, key=lambda budget: budget.value / budget.limit)
        unit = " x reference" if worst.relative else ""
        return (
            f"{worst.metric} at {worst.context} on {worst.target} {worst.value:.3g}{unit}, "
            f"budget {worst.limit:g}{unit}"
        )
    if result.error is not None and not result.by_rung:
        return result.error
    first = result.by_rung[0]
    if not result.scored:
        names = [name for name in first.values if name != QUALITY]
        return f"training diverged, {_values(first, names)}"
    return _values(first, list(first.values))


def _values(found: Objectives, names: Sequence[str]) -> str:
    """Means of objectives in words."""
    return ", ".join(f"{name} {found.mean(name):.3g}" for name in names)
