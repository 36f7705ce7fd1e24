"""What strategies hear: every figure of every trial, with the noise that all of them show."""

import math

import pytest

from archloop.ranking.budgets import Budget
from archloop.ranking.estimate import Estimate
from archloop.ranking.record import Objectives, Readings
from archloop.search.base import Pending, Told
from archloop.search.strategies.star import STAR
from archloop.search.telling import Finished, ask, limits, tell
from archloop.space.seeding import from_layout
from archloop.store.database import Stored
from archloop.store.record import Candidate, Outcome
from space.spaces import named

GENOME = from_layout(named("small"), ["gqa"])
LIMIT = "decode_p50_ms/reference at 64 on here"


def finished(number: int, result: Outcome, replicates: int | None = None) -> Finished:
    # What a strategy hears is no part of the specs and their costs, which stay away here.
    tried = Candidate.model_construct(genome={}, origin="random", parents=(), replicates=replicates)
    stored = Stored.model_construct(number=number, candidate=tried, outcome=result)
    return Finished(stored, GENOME, result)


def read(latency: float, over: float, sd: float) -> dict[str, Readings]:
    margin = Readings(mean=math.log(1.1) + over, sd=sd, n=4)
    return {"latency": Readings(mean=latency, sd=sd, n=4), LIMIT: margin}


def test_limits_are_the_tightest_of_each_figure() -> None:
    budgets = [
        Budget(metric="decode_p50_ms", limit=1.1, relative=True, context=64),
        Budget(metric="decode_p50_ms", limit=1.3, relative=True),
        Budget(metric="peak_memory_bytes", limit=1e9, target="there"),
    ]
    assert limits(budgets, {"here": [64, 128], "there": [64]}) == {
        LIMIT: 1.1,
        "decode_p50_ms/reference at 128 on here": 1.3,
        "decode_p50_ms/reference at 64 on there": 1.1,
        "peak_memory_bytes at 64 on there": 1e9,
    }


def test_a_rejected_trial_tells_what_its_devices_said() -> None:
    rejected = Outcome(state="rejected", readings=read(1.4, 0.2, 0.05), excess=0.2)
    quality = Objectives(values={"quality": Readings(mean=0.6), "latency": Readings(mean=1.0)})
    trained = Outcome(state="complete", readings=read(1.0, -0.1, 0.01), by_rung=(quality,))
    noise = [{"quality": Readings(mean=0.5, sd=0.04, n=9)}]
    first, second = tell([finished(0, rejected), finished(1, trained, 0)], noise, {LIMIT: 1.1})
    assert (first.state, second.state) == ("rejected", "complete")
    assert set(first.figures) == {"latency"}
    assert set(second.figures) == {"latency", "quality"}
    assert first.margins[LIMIT].mean == pytest.approx(0.2)
    assert second.margins[LIMIT].mean == pytest.approx(-0.1)
    assert second.figures["quality"].se > 0, "one training has the noise of the reference's"
    # The noise of four processes is shrunk towards what both trials show.
    assert first.margins[LIMIT].se < 0.05 / 2
    assert second.margins[LIMIT].se > 0.01 / 2
    assert second.replicates == 0


def test_a_training_that_diverged_is_told_as_such() -> None:
    quality = Objectives(values={"quality": Readings(mean=0.0)})
    result = Outcome(state="complete", by_rung=(quality,), diverged=True)
    assert tell([finished(0, result)], [], {})[0].state == "diverged"


def test_generations_begin_with_the_strategys_first_trial() -> None:
    """Two specs of the recipe's own come before: trials 2 to 5 are the first generation."""
    space = named("small")
    star = STAR(space, STAR.Config(population=4, elites=0, mutation=0.0))
    told: list[Told] = []
    for number in range(2, 6):
        proposal = ask(star, number, 0, told, [], 2)
        assert proposal.origin == "random"
        told.append(Told(number, proposal.genome, "complete", _figures(number), {}))
    rivals = {ask(star, number, 0, told, [], 2).parents for number in range(6, 10)}
    assert {parent for pair in rivals for parent in pair} <= {2, 3, 4, 5}
    # The last of the first generation is as good a parent as any, and is the best by far.
    assert any(5 in pair for pair in rivals)


def test_what_is_pending_is_numbered_alike() -> None:
    seen = []

    class Looking(STAR):
        def ask(self, number, seed, told, pending=()):  # type: ignore[no-untyped-def]
            seen.append((number, [each.number for each in pending]))
            return super().ask(number, seed, told, pending)

    ask(Looking(named("small")), 7, 0, [], [Pending(5, GENOME)], 4)
    assert seen == [(3, [1])]


def _figures(number: int) -> dict[str, Estimate]:
    better = 0.1 * number
    return {
        "quality": Estimate(mean=better),
        "latency": Estimate(mean=1 - better),
        "memory": Estimate(mean=1 - better),
    }
