"""What the model strategy believes, and what it does with it."""

import math
import zlib
from typing import Any

import numpy as np
import pytest

from archloop.ranking.estimate import Estimate
from archloop.search.base import Pending, Told
from archloop.search.beliefs import MOST_TOGETHER, Beliefs, Believed, Believer
from archloop.search.history import merged
from archloop.search.strategies.model import Model
from archloop.search.surrogate import Data, fitted
from archloop.space.features import features
from archloop.space.space import Space
from archloop.space.variation import sample
from search.test_strategies_compared import complete, evaluate, twelve

NAMES = ("quality", "latency", "memory")


def told(space: Space, count: int, limit: float = 1.2) -> list[Told]:
    """So many random trials of which those over the memory budget were rejected untrained."""
    rng = np.random.default_rng(7)
    history = []
    for number in range(count):
        genome = sample(space, rng)
        values = evaluate(genome)
        entry = complete(number, genome, values)
        margin = Estimate(mean=math.log(values[2] / limit), se=0.01)
        entry = entry._replace(margins={"memory": margin})
        if margin.mean > 0:
            kept = {name: entry.figures[name] for name in ("latency", "memory")}
            entry = entry._replace(state="rejected", figures=kept)
        history.append(entry)
    return history


def believer(space: Space) -> Believer:
    return Believer(lambda genome: features(space, genome))


def test_costs_are_believed_from_rejected_trials_too() -> None:
    """They add up over blocks: a dozen trials say what any other genome costs."""
    space = twelve()
    history = told(space, 14, limit=0.6)
    assert sum(entry.state == "rejected" for entry in history) >= 5
    beliefs = believer(space)(merged(history), NAMES)
    rng = np.random.default_rng(1)
    genomes = [sample(space, rng) for _ in range(60)]
    x = np.stack([features(space, genome) for genome in genomes])
    memory = np.array([evaluate(genome)[2] for genome in genomes])
    mean, sd = beliefs.objectives["memory"].surrogate.marginals(x)
    assert np.abs(mean - memory).mean() < 0.05
    assert (np.abs(mean - memory) < 3 * sd).mean() > 0.9
    keeps = beliefs.keeps_budgets(x)
    assert keeps[memory < 0.5].min(initial=1.0) > 0.5
    assert keeps[memory > 0.7].max(initial=0.0) < 0.5


def test_a_figure_that_one_trial_has_is_not_believed() -> None:
    space = twelve()
    (first, *_) = told(space, 1, limit=9.0)
    beliefs = believer(space)(merged([first]), NAMES)
    assert not beliefs.objectives
    assert not beliefs.margins
    assert beliefs.keeps_budgets(np.zeros((3, 2))).tolist() == [1.0, 1.0, 1.0]


def test_fits_of_trials_told_long_ago_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archloop.search.beliefs.MOST_KEPT", 8)
    space = twelve()
    history, believe = told(space, 6, limit=9.0), believer(space)
    for se in (0.01, 0.02, 0.03, 0.04, 0.05):
        # With each trial that is told, the noise of those before is known anew.
        known = [
            entry._replace(
                figures={n: e.model_copy(update={"se": se}) for n, e in entry.figures.items()}
            )
            for entry in history
        ]
        assert set(believe(merged(known), NAMES).objectives) == set(NAMES)
    assert len(believe._kernels) <= 8


def test_a_fit_serves_while_noise_is_known_a_little_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a study's pool says of noise moves by a percent with each trial that is told."""
    fits: list[int] = []

    def counted(data: Data) -> Any:
        fits.append(len(data.y_N))
        return fitted(data)

    monkeypatch.setattr("archloop.search.beliefs.fitted", counted)
    space = twelve()
    history, believe, rng = told(space, 6, limit=9.0), believer(space), np.random.default_rng(0)
    for usual in (0.0105, 0.0106, 0.0108):
        known = []
        for entry in history:
            se = {"se": usual * rng.uniform(0.99, 1.01)}
            figures = {n: e.model_copy(update=se) for n, e in entry.figures.items()}
            known.append(entry._replace(figures=figures))
        believe(merged(known), NAMES)
    # Of three objectives and a budget.
    assert len(fits) == 4


def test_random_trials_keep_the_budgets_as_soon_as_they_are_known() -> None:
    space = twelve()
    history = told(space, 7, limit=0.55)
    strategy = Model(space, Model.Config(start=40))
    memory = [evaluate(strategy.ask(7, seed, history).genome)[2] for seed in range(20)]
    by_chance = [evaluate(sample(space, np.random.default_rng(s)))[2] for s in range(200)]
    assert np.mean(np.array(by_chance) <= 0.55) < 0.6
    assert np.mean(np.array(memory) <= 0.55) > 0.75


@pytest.mark.parametrize("seed", range(3))
def test_a_trial_that_runs_is_not_proposed_and_counts_as_it_is_believed(seed: int) -> None:
    """Workers that ask at once, before anything comes back, are told of different stacks."""
    space = twelve()
    history, strategy = told(space, 12), Model(space, Model.Config(replicate_every=0))
    running: list[Pending] = []
    for number in range(12, 16):
        proposal = strategy.ask(number, seed, history, running)
        assert proposal.origin.startswith("model")
        running.append(Pending(number, proposal.genome))
    assert len({strategy.identity(entry.genome) for entry in running}) == 4
    again = Model(space, Model.Config(replicate_every=0)).ask(15, seed, history, running[:3])
    assert again.genome == running[3].genome


def test_replicates_alone_would_never_end_a_study() -> None:
    with pytest.raises(ValueError, match="give 0, or 2 or more"):
        Model.Config(replicate_every=1)
    assert Model.Config(replicate_every=0).replicate_every == 0
    assert Model.Config(replicate_every=2).replicate_every == 2


@pytest.mark.parametrize("seed", range(4))
def test_what_may_not_be_tried_is_no_candidate(seed: int) -> None:
    """Else the most promising one, of which three in four may not be, ends as a random mutant."""
    space = twelve()
    history, strategy = told(space, 14), Model(space, Model.Config(replicate_every=0))
    strategy.allows = lambda genome: zlib.crc32(genome.to_json().encode()) % 4 == 0
    proposal = strategy.ask(14, seed, history)
    assert strategy.allows(proposal.genome)
    assert proposal.origin in ("model", "model+random")


class Alike:
    """A surrogate that says the same of every genome."""

    def __init__(self, mean: float, sd: float) -> None:
        self.mean, self.sd = mean, sd

    def marginals(self, x_CF: Any) -> tuple[Any, Any]:
        return np.full(len(x_CF), self.mean), np.full(len(x_CF), self.sd)


@pytest.mark.parametrize("together", [0.0, 0.5, 0.9])
def test_budgets_that_move_together_are_one_risk_rather_than_many(together: float) -> None:
    """Ten targets' steps, 2% within their limits, known to 3%."""
    rng = np.random.default_rng(0)
    surrogate: Any = Alike(0.98, 0.03)
    margins = {f"target {i}": Believed(surrogate, {}) for i in range(10)}
    found = Beliefs({}, margins, together).keeps_budgets(np.zeros((1, 2)))
    common, own = rng.standard_normal((20_000, 1)), rng.standard_normal((20_000, 10))
    errors = math.sqrt(together) * common + math.sqrt(1 - together) * own
    truth = (0.98 + 0.03 * errors < 1).all(1).mean()
    assert found[0] == pytest.approx(truth, abs=0.02)


def test_how_far_budgets_move_together_is_read_off_the_trials() -> None:
    space = twelve()
    history, rng = told(space, 12, limit=9.0), np.random.default_rng(0)

    def limited(noise: float) -> float:
        changed = []
        for entry in history:
            memory, around = entry.margins["memory"], noise * rng.standard_normal(6)
            own = {
                str(i): memory.model_copy(update={"mean": memory.mean + a})
                for i, a in enumerate(around)
            }
            changed.append(entry._replace(margins=own))
        return believer(space)(merged(changed), NAMES).together

    assert limited(0.0) == MOST_TOGETHER
    assert limited(2.0) < 0.3
    assert believer(space)(merged(history), NAMES).together == 0.0
