"""From trials' records to what strategies are told of them.

Readings become estimates with the noise that all trials show together, so what is told of a trial
is a function of the set of trials that are told.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from archloop.ranking.budgets import Budget, Limited
from archloop.ranking.estimate import Estimate
from archloop.ranking.estimates import estimate, pools
from archloop.ranking.record import Readings
from archloop.search.base import Pending, Proposal, Strategy, Told, ToldState
from archloop.space.genome import Genome
from archloop.store.database import Stored
from archloop.store.record import Outcome

Stack = Mapping[str, Readings]
Numbered = TypeVar("Numbered", Told, Pending)


class Finished(NamedTuple):
    """A trial that has ended.

    `genome` is one object for the whole study, since strategies remember what they computed of a
    genome by object (`base.Remembered`); None if the trial has none.
    """

    stored: Stored
    genome: Genome | None
    result: Outcome


def limits(budgets: Sequence[Budget], contexts: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """The tightest limit of each figure that budgets limit, by the figure's name.

    Args:
        budgets: of the study.
        contexts: measured on each target, by its name.
    """
    found: dict[str, float] = {}
    for budget in budgets:
        for target in contexts if budget.target is None else [budget.target]:
            for context in contexts[target] if budget.context is None else [budget.context]:
                name = Limited(budget, target, context, Readings(mean=0.0)).name
                found[name] = min(budget.limit, found.get(name, math.inf))
    return found


def tell(
    trials: Sequence[Finished],
    noise: Sequence[Stack],
    limit: Mapping[str, float],
) -> list[Told]:
    """All that was measured of finished trials, of rejected ones too.

    Args:
        trials: finished ones, each with a genome.
        noise: readings of stacks that are no trials and show the same noise.
        limit: of the figures that budgets limit, whose readings are logarithms (`limits`).
    """
    stacks = [_read(trial.result) for trial in trials]
    known = pools([*noise, *stacks])
    found = []
    for trial, stack in zip(trials, stacks, strict=True):
        assert trial.genome is not None, "a trial without a genome tells a strategy nothing"
        estimates = {
            name: estimate(readings, known[name]) if name in known else Estimate(mean=readings.mean)
            for name, readings in stack.items()
        }
        found.append(
            Told(
                trial.stored.number,
                trial.genome,
                _state(trial.result),
                {name: value for name, value in estimates.items() if name not in limit},
                {
                    name: value.model_copy(update={"mean": value.mean - math.log(limit[name])})
                    for name, value in estimates.items()
                    if name in limit
                },
                trial.stored.candidate.replicates,
            )
        )
    return found


def ask(
    strategy: Strategy,
    number: int,
    seed: int,
    told: Sequence[Told],
    pending: Sequence[Pending],
    num_given: int,
) -> Proposal:
    """What a strategy proposes for a trial, where the recipe's own specs are the first trials.

    A strategy numbers what it proposes from 0 (generations hang on it), and so it knows all trials,
    and names parents, by its own numbers. Trials of the recipe's own specs have no genome, so none
    of them is among those it knows.

    Args:
        strategy: that is asked.
        number: of the trial in the study.
        seed: of the study.
        told: finished trials by their numbers in the study.
        pending: trials under way, likewise.
        num_given: specs that the recipe itself names.

    Raises:
        SpaceExhaustedError: nothing new was found.
    """
    proposal = strategy.ask(
        number - num_given,
        seed,
        [_renumbered(each, -num_given) for each in told],
        [_renumbered(each, -num_given) for each in pending],
    )
    return proposal._replace(
        parents=tuple(parent + num_given for parent in proposal.parents),
        replicates=None if proposal.replicates is None else proposal.replicates + num_given,
    )


def _renumbered(trial: Numbered, by: int) -> Numbered:
    replicates = None if trial.replicates is None else trial.replicates + by
    return trial._replace(number=trial.number + by, replicates=replicates)


def _read(result: Outcome) -> dict[str, Readings]:
    """Objectives at the first rung that were read, and the figures that budgets limit."""
    first = result.by_rung[0].values if result.by_rung else {}
    return {**result.readings, **first}


def _state(result: Outcome) -> ToldState:
    assert result.state != "running", "a trial that runs is pending"
    return "diverged" if result.state == "complete" and not result.scored else result.state
