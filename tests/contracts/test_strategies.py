"""What must hold for every strategy: proposals are new, valid and a function of what was told."""

import numpy as np
import pytest

from archloop import registry
from archloop.search.base import Strategy, Told
from archloop.space.seeding import from_layout
from space.spaces import assert_valid, named

every_strategy = pytest.mark.parametrize("name", registry.names("strategies"))
SEED = 11


def make(name: str, num_initial: int = 2) -> Strategy:
    space = named("rich")
    layouts = (["gqa"] + ["short_conv"] * 5, ["short_conv"] * 3 + ["gqa", "swa", "gqa"])
    initial = [from_layout(space, layout) for layout in layouts[:num_initial]]
    strategy: Strategy = registry.get("strategies", name)(space, None, initial)
    return strategy


def told(strategy: Strategy, number: int, history: list[Told]) -> Told:
    """Ask, and answer as some device might: one trial in five is rejected, one in ten fails."""
    genome = strategy.ask(number, SEED, history).genome
    rng = np.random.default_rng([7, number])
    if number % 10 == 9:
        return Told(number, genome, "failed")
    if number % 5 == 3:
        return Told(number, genome, "rejected", None, float(rng.random()))
    quality, latency, memory = rng.random(3)
    return Told(number, genome, "complete", (quality, latency + 0.5, memory + 0.5))


def study(name: str, num_trials: int) -> list[Told]:
    strategy, history = make(name), list[Told]()
    for number in range(num_trials):
        history.append(told(strategy, number, history))
    return history


@every_strategy
def test_proposals_are_valid_new_and_come_with_their_origin(name: str) -> None:
    history, strategy = study(name, 40), make(name)
    digests = {strategy.digest(entry.genome) for entry in history}
    assert len(digests) == 40
    for number in range(40, 60):
        proposal = strategy.ask(number, SEED, history)
        assert_valid(strategy.space, proposal.genome)
        assert strategy.digest(proposal.genome) not in digests
        assert proposal.origin
        assert set(proposal.parents) <= set(range(40))


@every_strategy
def test_initial_genomes_come_first(name: str) -> None:
    strategy = make(name)
    for number, genome in enumerate(strategy.initial):
        proposal = strategy.ask(number, SEED, [])
        assert (proposal.genome, proposal.origin) == (genome, "preset")
    assert strategy.ask(2, SEED, []).origin != "preset"
    seen = [Told(0, strategy.initial[1], "complete", (0.5, 1, 1))]
    assert strategy.ask(1, SEED, seen).genome != strategy.initial[1]


@every_strategy
def test_a_fresh_strategy_proposes_what_an_old_one_does(name: str) -> None:
    history, old = study(name, 30), make(name)
    for number in (5, 30, 12, 30, 31):
        part = history[:number]
        assert old.ask(number, SEED, part) == make(name).ask(number, SEED, part)


@every_strategy
def test_a_proposal_does_not_depend_on_the_order_of_telling(name: str) -> None:
    history = study(name, 30)
    expected = make(name).ask(30, SEED, history)
    shuffled = [history[i] for i in np.random.default_rng(0).permutation(30)]
    assert make(name).ask(30, SEED, shuffled) == expected
    grown = make(name)
    grown.ask(30, SEED, shuffled[:20])
    assert grown.ask(30, SEED, shuffled) == expected
    copies = [Told(*entry) for entry in history]
    assert grown.ask(30, SEED, copies) == expected


@every_strategy
def test_a_changed_entry_is_noticed(name: str) -> None:
    history, strategy = study(name, 30), make(name)
    strategy.ask(30, SEED, history)
    changed = [history[0]._replace(values=(0.99, 0.1, 0.1)), *history[1:]]
    assert strategy.ask(30, SEED, changed) == make(name).ask(30, SEED, changed)


@every_strategy
def test_trials_still_running_are_simply_missing(name: str) -> None:
    history, strategy = study(name, 30), make(name)
    part = [entry for entry in history if entry.number not in (27, 29)]
    assert_valid(strategy.space, strategy.ask(31, SEED, part).genome)


@every_strategy
def test_seed_and_number_both_matter(name: str) -> None:
    history, strategy = study(name, 10), make(name)
    base = strategy.ask(10, SEED, history).genome
    others = [strategy.ask(10, SEED + 1, history).genome, strategy.ask(11, SEED, history).genome]
    assert base not in others
    assert strategy.ask(10, SEED, history).genome == base


@every_strategy
def test_telling_is_not_needed(name: str) -> None:
    history, strategy = study(name, 10), make(name)
    for entry in history:
        strategy.tell(entry)
    assert strategy.ask(10, SEED, history) == make(name).ask(10, SEED, history)
