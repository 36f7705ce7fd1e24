"""The contract of strategies: proposals are new, valid and a function of what was told."""

import math
from functools import cache
from typing import Any, ClassVar

import numpy as np

from archloop import registry
from archloop.ranking.estimate import Estimate
from archloop.search.base import Pending, Strategy, Told
from archloop.space.config import SpaceConfig
from archloop.space.opening import open_space
from archloop.space.seeding import from_layout
from archloop.testing.contract import Contract
from archloop.testing.spaces import RICH, assert_valid

SEED = 11

LONGEST = 30
"""Trials of the longest study that a test looks at."""


def make(name: str, num_initial: int = 2) -> Strategy:
    """A strategy that has proposed nothing yet."""
    space = open_space(SpaceConfig(**RICH))
    layouts = (["gqa"] + ["short_conv"] * 5, ["short_conv"] * 3 + ["gqa", "swa", "gqa"])
    initial = [from_layout(space, layout) for layout in layouts[:num_initial]]
    strategy: Strategy = registry.get("strategies", name)(space, None, initial)
    strategy.worst = {"quality": 0.0, "latency": 1.5, "memory": 1.5}
    return strategy


def told(strategy: Strategy, number: int, history: list[Told]) -> Told:
    """Ask, and answer as some device might: one trial in five is rejected, one in ten fails."""
    proposal = strategy.ask(number, SEED, history)
    genome, rng = proposal.genome, np.random.default_rng([7, number])
    quality, latency, memory = rng.random(3)
    figures = {
        "latency": Estimate(mean=latency + 0.5, se=0.01),
        "memory": Estimate(mean=memory + 0.5, se=0.01),
    }
    margins = {"latency <= 1.2": Estimate(mean=math.log((latency + 0.5) / 1.2), se=0.01)}
    if number % 10 == 9:
        return Told(number, genome, "failed", replicates=proposal.replicates)
    if number % 5 == 3:
        return Told(number, genome, "rejected", figures, margins, proposal.replicates)
    figures["quality"] = Estimate(mean=quality, se=0.05)
    return Told(number, genome, "complete", figures, margins, proposal.replicates)


def study(name: str, num_trials: int) -> list[Told]:
    """The history of so many trials; a shorter study is the beginning of a longer one."""
    assert num_trials <= LONGEST
    return list(_longest_study(registry.get("strategies", name))[:num_trials])


@cache
def _longest_study(plugin: type[Strategy]) -> tuple[Told, ...]:
    strategy, history = make(plugin.name), list[Told]()
    for number in range(LONGEST):
        history.append(told(strategy, number, history))
    return tuple(history)


class StrategyContract(Contract):
    """Tests of strategies, each with its default settings on a small space with every rule."""

    kind: ClassVar[str] = "strategies"

    def test_proposals_are_valid_new_and_come_with_their_origin(self, name: str) -> None:
        history, strategy = study(name, LONGEST), make(name)
        new = [entry for entry in history if entry.replicates is None]
        digests = {strategy.identity(entry.genome) for entry in new}
        assert len(digests) == len(new)
        for number in range(LONGEST, LONGEST + 5):
            proposal = strategy.ask(number, SEED, history)
            assert_valid(strategy.space, proposal.genome)
            assert (proposal.replicates is None) == (
                strategy.identity(proposal.genome) not in digests
            )
            assert proposal.origin
            assert set(proposal.parents) <= set(range(LONGEST))

    def test_a_replicate_is_of_a_trial_that_was_trained(self, name: str) -> None:
        history = study(name, LONGEST)
        for entry in history:
            if entry.replicates is not None:
                first = history[entry.replicates]
                assert first.number < entry.number
                assert first.genome == entry.genome
                assert (first.state, first.replicates) == ("complete", None)

    def test_initial_genomes_come_first(self, name: str) -> None:
        strategy, seen = make(name), list[Told]()
        for number, genome in enumerate(strategy.initial):
            proposal = strategy.ask(number, SEED, seen)
            assert (proposal.genome, proposal.origin) == (genome, "preset")
            seen.append(Told(number, genome, "failed"))
        assert strategy.ask(2, SEED, seen).origin != "preset"
        # One that was proposed otherwise is not tried again.
        assert strategy.ask(1, SEED, seen[1:]).genome == strategy.initial[0]

    def test_initial_genomes_come_whatever_was_repeated_between(self, name: str) -> None:
        strategy = make(name)
        first, second = strategy.initial
        seen = [Told(0, first, "complete")]
        seen += [Told(number, first, "complete", replicates=0) for number in (1, 2)]
        proposal = strategy.ask(3, SEED, seen)
        assert (proposal.genome, proposal.origin) == (second, "preset")

    def test_a_fresh_strategy_proposes_what_an_old_one_does(self, name: str) -> None:
        history, old = study(name, 30), make(name)
        for number in (5, 30, 12, 30, 31):
            part = history[:number]
            assert old.ask(number, SEED, part) == make(name).ask(number, SEED, part)

    def test_a_proposal_does_not_depend_on_the_order_of_telling(self, name: str) -> None:
        history = study(name, 30)
        expected = make(name).ask(30, SEED, history)
        shuffled = [history[i] for i in np.random.default_rng(0).permutation(30)]
        assert make(name).ask(30, SEED, shuffled) == expected
        grown = make(name)
        grown.ask(30, SEED, shuffled[:20])
        assert grown.ask(30, SEED, shuffled) == expected
        copies = [Told(*entry)._replace(genome=entry.genome.model_copy()) for entry in history]
        assert grown.ask(30, SEED, copies) == expected

    def test_a_changed_entry_is_noticed(self, name: str) -> None:
        history, strategy = study(name, 30), make(name)
        strategy.ask(30, SEED, history)
        better = {objective.name: Estimate(mean=0.99, se=0.01) for objective in strategy.objectives}
        changed = [history[0]._replace(figures=better), *history[1:]]
        assert strategy.ask(30, SEED, changed) == make(name).ask(30, SEED, changed)

    def test_what_is_pending_is_not_proposed_again(self, name: str) -> None:
        """Workers that ask at once get different specs, and the same ones when a study goes on."""
        history, strategy = study(name, 24), make(name)
        pending: list[Pending] = []
        for number in range(24, 30):
            proposal = strategy.ask(number, SEED, history, pending)
            assert_valid(strategy.space, proposal.genome)
            assert proposal == make(name).ask(number, SEED, history, pending[::-1])
            if proposal.replicates is None:
                taken = {strategy.identity(entry.genome) for entry in pending}
                assert strategy.identity(proposal.genome) not in taken
            pending.append(Pending(number, proposal.genome, proposal.replicates))

    def test_seed_and_number_both_matter(self, name: str) -> None:
        history, strategy = study(name, 10), make(name)
        base = strategy.ask(10, SEED, history).genome
        others = [
            strategy.ask(10, SEED + 1, history).genome,
            strategy.ask(11, SEED, history).genome,
        ]
        assert base not in others
        assert strategy.ask(10, SEED, history).genome == base

    def test_a_study_in_which_nothing_was_trained_goes_on(self, name: str) -> None:
        strategy, history = make(name), list[Told]()
        states: list[Any] = ["rejected", "failed", "unsupported", "diverged"]
        over = {"latency": Estimate(mean=0.3, se=0.01)}
        for number in range(24):
            proposal = strategy.ask(number, SEED, history)
            state = states[number % 4]
            margins = over if state == "rejected" else {}
            history.append(Told(number, proposal.genome, state, {}, margins, proposal.replicates))
        assert_valid(strategy.space, strategy.ask(24, SEED, history).genome)
