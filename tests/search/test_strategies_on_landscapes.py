"""Strategies on landscapes whose truth is known, as `docs/results/strategies.md` has them."""

import numpy as np
import pytest

from archloop.space.config import SpaceConfig
from archloop.space.opening import open_space
from strategies import SPACE, Landscape, study, volume

NUM_TRIALS, SEEDS = 20, range(200, 208)


def found(name: str, seed: int) -> float:
    """True hypervolume of what a strategy tried on the landscape of this seed."""
    landscape = Landscape("lfm", seed, open_space(SpaceConfig(**SPACE)))
    return volume(study(name, landscape, seed, NUM_TRIALS, "quiet"))


@pytest.mark.slow
def test_a_model_beats_random_search_of_either_prior_within_twenty_trials() -> None:
    by_model = np.array([found("model", seed) for seed in SEEDS])
    for name in ("random_uniform", "random"):
        gains = by_model - np.array([found(name, seed) for seed in SEEDS])
        assert gains.mean() > 3 * gains.std(ddof=1) / np.sqrt(len(gains)), name
