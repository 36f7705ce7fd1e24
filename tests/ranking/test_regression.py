"""A fit from few observations: its intervals hold the truth, whatever size effects have."""

import numpy as np
import pytest

from archloop.ranking.regression import fit

NOISE = 0.05
STUDIES = 100


@pytest.mark.parametrize("num_stacks, num_families", [(9, 4), (20, 6)])
@pytest.mark.parametrize("effect", [0.0, 0.1, 0.3, 1.0, 3.0])
def test_intervals_hold_the_truth(num_stacks: int, num_families: int, effect: float) -> None:
    """Shares of families in stacks of eight blocks; half of the noise is known beforehand."""
    rng = np.random.default_rng(int(10 * effect) + num_stacks)
    inside = claimed = count = 0
    for _ in range(STUDIES):
        drawn = rng.multinomial(8, np.ones(num_families) / num_families, size=num_stacks) / 8
        shares_NK = drawn - drawn.mean(0)
        truth_K = effect * rng.normal(size=num_families)
        noise_N = NOISE * rng.normal(size=(2, num_stacks)).sum(0)
        found = fit(shares_NK, shares_NK @ truth_K + noise_N, np.full(num_stacks, NOISE))
        for weights_K in np.eye(num_families) - 1 / num_families:
            low, high = found.contrast(weights_K).interval()
            inside += low <= weights_K @ truth_K <= high
            claimed += low > 0 or high < 0
            count += 1
    # 95% are meant; of 400 to 600 intervals, those of a study hanging together, 92% is within luck.
    assert inside / count >= 0.92
    if effect == 0:
        assert claimed / count <= 0.03
    if effect >= 1:
        assert claimed / count >= 0.5, "what is large is found"
