"""A proposal costs no more than half a second of a core after a thousand trials."""

import time

import numpy as np
import pytest

from archloop import registry
from archloop.search.base import Strategy, Told
from archloop.space.config import SpaceConfig
from archloop.space.opening import open_space
from archloop.space.space import Space
from archloop.space.variation import sample
from strategies import SPACE, WORST, Landscape, answer

NUM_TRIALS = 1000


@pytest.fixture(scope="module")
def told() -> tuple[Space, list[Told]]:
    space, rng = open_space(SpaceConfig(**SPACE)), np.random.default_rng(0)
    landscape = Landscape("lfm", 0, space)
    genomes = [sample(space, rng) for _ in range(NUM_TRIALS)]
    return space, [
        answer(number, 0, genome, landscape.truth(genome), "quiet", None)
        for number, genome in enumerate(genomes)
    ]


@pytest.mark.parametrize("name", registry.names("strategies"))
def test_a_proposal_after_a_thousand_trials(name: str, told: tuple[Space, list[Told]]) -> None:
    space, history = told
    strategy: Strategy = registry.get("strategies", name)(space)
    strategy.worst = WORST
    # The first proposal looks at each trial once and fits what later ones share.
    strategy.ask(NUM_TRIALS, 0, history)
    started = time.process_time()
    for number in (NUM_TRIALS + 1, NUM_TRIALS + 2):
        strategy.ask(number, 0, history)
    assert (time.process_time() - started) / 2 < 0.5
