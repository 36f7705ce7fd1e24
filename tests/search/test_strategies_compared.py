"""What sets the strategies apart: NSGA-II ranks by the book, and beats random search."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from archloop import registry
from archloop.ranking import front
from archloop.ranking.estimate import Estimate
from archloop.search.base import OBJECTIVES, SpaceExhaustedError, Strategy, Told
from archloop.search.history import best, constrained_order, merged, points
from archloop.search.strategies.nsga2 import NSGA2
from archloop.space.config import SpaceConfig
from archloop.space.genome import Genome
from archloop.space.opening import open_space
from archloop.space.seeding import from_layout
from archloop.space.space import Space
from archloop.space.variation import sample
from space.spaces import SMALL, changed, named

REFERENCE = (0.0, 1.5, 1.5)


def twelve() -> Space:
    """Twelve blocks of three mixers without a parameter budget: about 10^8 layouts."""
    return open_space(
        changed(
            num_blocks=12,
            budget=None,
            interleaving={},
            sharing={},
            channel_mixers={"swiglu": {"expansion": 2}},
            scope={"short_conv.kernel": "block"},
        )
    )


def evaluate(genome: Genome) -> tuple[float, float, float]:
    """Quality, latency and memory of a made-up device on which every term is known.

    Global mixers help most when spread out and early convolutions wide; both have their price.
    """
    layout, num = genome.layout, len(genome.blocks)
    places = [i for i, name in enumerate(layout) if name == "gqa"]
    gaps = np.diff([-1, *places, num])
    recall = len(places) / (len(places) + 2) * (1 - gaps.max() / (num + 1)) if places else 0.0
    kernels = [float(str(b.mixers[0].genes.get("kernel", 0))) for b in genome.blocks]
    text = sum(kernel / 7 * (num - i) for i, kernel in enumerate(kernels)) / (num * (num + 1) / 2)
    windows = layout.count("swa")
    latency = 0.4 + 0.06 * len(places) + 0.04 * windows + 0.004 * sum(kernels)
    memory = 0.3 + 0.1 * len(places) + 0.02 * windows
    return (recall + text) / 2, latency, memory


def search(strategy: Strategy, seed: int, num_trials: int) -> list[Told]:
    """A study with `evaluate` for a device and a memory budget of 1.2."""
    history: list[Told] = []
    for number in range(num_trials):
        genome = strategy.ask(number, seed, history).genome
        values = evaluate(genome)
        history.append(complete(number, genome, values))
        if values[2] > 1.2:
            figures = {name: history[-1].figures[name] for name in ("latency", "memory")}
            history[-1] = history[-1]._replace(state="rejected", figures=figures)
    return history


def complete(number: int, genome: Genome, values: Sequence[float]) -> Told:
    """A trial that kept its budgets: quality, latency, memory, and a memory budget of 1.2."""
    names = ("quality", "latency", "memory")
    figures = {name: Estimate(mean=v, se=0.01) for name, v in zip(names, values, strict=True)}
    margin = Estimate(mean=math.log(values[2] / 1.2), se=0.01) if values[2] > 0 else None
    return Told(number, genome, "complete", figures, {"memory": margin} if margin else {})


def volume(history: list[Told]) -> float:
    """Of what was found, whatever a strategy knew of it."""
    tried = [entry for entry in merged(history) if entry.is_parent]
    return front.hypervolume(points(tried, OBJECTIVES), REFERENCE)


@pytest.mark.slow
def test_nsga2_beats_random_search() -> None:
    # Steps are small and random proportions a strong start: evolution needs some 100 trials to pay.
    space, config = twelve(), NSGA2.Config(population=8)
    volumes = {
        name: [
            volume(search(registry.get("strategies", name)(space, settings), seed, 200))
            for seed in range(8)
        ]
        for name, settings in (("nsga2", config), ("random", None))
    }
    gains = np.array(volumes["nsga2"]) - np.array(volumes["random"])
    assert gains.mean() > 3 * gains.std(ddof=1) / np.sqrt(len(gains))


def test_evolution_leaves_the_rejected_region() -> None:
    space = twelve()
    heavy = [from_layout(space, ["gqa"] * 12), from_layout(space, ["gqa"] * 11 + ["swa"])]
    strategy = NSGA2(space, NSGA2.Config(population=2), heavy)
    history = search(strategy, 0, 40)
    assert [told.state for told in history[:2]] == ["rejected", "rejected"]
    assert any(told.state == "complete" for told in history)
    late = [told.state for told in history[20:]]
    assert late.count("complete") >= 15


# --- the order of parents -----------------------------------------------------------------------


def test_feasible_points_come_first_and_broken_ones_by_their_excess() -> None:
    nan = float("nan")
    points = np.array([[nan] * 2, [3.0, 3.0], [1.0, 2.0], [nan] * 2, [2.0, 1.0], [9.0, 9.0]])
    excess = np.array([0.5, 0, 0, 0.1, 0, 0.3])
    assert constrained_order(points, excess, 6).tolist() == [2, 4, 1, 3, 5, 0]
    assert constrained_order(points, excess, 2).tolist() == [2, 4]
    assert constrained_order(points[:0], excess[:0], 4).tolist() == []


def test_ends_of_the_front_survive() -> None:
    points = np.stack([np.linspace(0, 1, 50), np.linspace(1, 0, 50)], 1)
    kept = constrained_order(points, np.zeros(50), 4).tolist()
    assert {0, 49} <= set(kept)


GQA = from_layout(named("small"), ["gqa"])


@pytest.mark.parametrize(
    "useless",
    [
        Told(90, GQA, "failed"),
        Told(90, GQA, "unsupported"),
        complete(90, from_layout(named("small"), ["gqa"]), (1.0, 0.0, 0.0))._replace(
            state="failed"
        ),
        complete(90, from_layout(named("small"), ["gqa"]), (9.0, 0.1, 0.1))._replace(
            state="diverged"
        ),
        Told(90, from_layout(named("small"), ["gqa"]), "complete"),
        complete(90, from_layout(named("small"), ["gqa"]), (float("nan"), 0.1, 0.1)),
    ],
)
def test_what_cannot_be_ranked_has_no_children(useless: Told) -> None:
    space = open_space(SpaceConfig(**(SMALL | {"num_blocks": [5, 6, 7]})))
    useless = useless._replace(genome=from_layout(space, ["gqa"] * 5))
    rng = np.random.default_rng(0)
    history = [complete(n, sample(space, rng), (0.5, 1.0 + n, 1.0 - n)) for n in range(3)]
    strategy = NSGA2(space, NSGA2.Config(population=4))
    for number in range(91, 111):
        proposal = strategy.ask(number, 0, [*history, useless])
        assert 90 not in proposal.parents
        assert proposal.parents


def test_parents_lie_inside_the_reference_point_as_far_as_there_are_any() -> None:
    """A stack of no use in one objective has the best of another, and so a place on any front."""
    space, rng = twelve(), np.random.default_rng(0)
    values = [(0.5, 1.0, 1.0), (0.9, 1.6, 1.0), (0.4, 0.9, 1.1), (0.1, 0.2, 1.7)]
    tried = merged([complete(n, sample(space, rng), v) for n, v in enumerate(values)])
    worst = {"quality": 0.0, "latency": 1.5, "memory": 1.5}
    assert {entry.number for entry in best(tried, OBJECTIVES, 2, worst)} == {0, 2}
    assert len(best(tried, OBJECTIVES, 4, worst)) == 4
    assert {entry.number for entry in best(tried, OBJECTIVES, 2)} != {0, 2}


def test_replicates_count_as_one_trial_by_what_is_known_of_each() -> None:
    space, rng = named("small"), np.random.default_rng(0)
    genome = sample(space, rng)
    first = complete(0, genome, (0.2, 1.0, 1.0))
    again = complete(1, genome, (0.8, 1.0, 1.0))._replace(replicates=0)
    precise = {**again.figures, "quality": Estimate(mean=0.8, se=0.005)}
    (tried,) = merged([again._replace(figures=precise), first])
    assert (tried.number, tried.num_trials) == (0, 2)
    assert tried.figures["quality"].mean == pytest.approx(0.68)
    assert tried.figures["quality"].se == pytest.approx(0.01 / math.sqrt(5))


def test_every_kind_of_origin_occurs_and_parents_are_named() -> None:
    history = search(NSGA2(twelve(), NSGA2.Config(population=4)), 3, 4)
    strategy = NSGA2(twelve(), NSGA2.Config(population=4))
    proposals = [strategy.ask(number, 3, history) for number in range(4, 60)]
    assert {p.origin for p in proposals} == {"mutation", "crossover", "crossover+mutation"}
    for proposal in proposals:
        assert len(proposal.parents) == (1 if proposal.origin == "mutation" else 2)
        assert set(proposal.parents) <= set(range(4))


@pytest.mark.parametrize("bad", [{"population": 1}, {"crossover": 1.1}, {"populaton": 4}])
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        NSGA2.Config(**bad)


def test_an_exhausted_space_says_so_after_its_last_genome() -> None:
    space = named("small")
    strategy = registry.get("strategies", "random")(space)
    history: list[Told] = []
    for number in range(space.size):
        genome = strategy.ask(number, 0, history).genome
        history.append(complete(number, genome, (0.1, 1.0, 1.0)))
    with pytest.raises(SpaceExhaustedError, match="12 different specs were tried"):
        strategy.ask(space.size, 0, history)
