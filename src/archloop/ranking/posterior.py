"""What is believed of the stacks' true values: estimates shrunk towards their mean.

The best of many noisy estimates is too good on average, and the more so the less stacks differ.
Each objective is a normal model in two levels: true values around a mean with a spread between
stacks, and estimates around the true values with their noise. The spread, and the size of noise
that comes from a common pool, are drawn from their own posterior on a grid, so that a pool of few
degrees of freedom leaves open whether stacks differ at all (Gelman et al., Bayesian Data Analysis,
3rd edition, section 5.4; flat prior on the spread).

Shape suffixes: K draws, N stacks, M objectives, G cells of the grid.
"""

import math

import numpy as np
from scipy import special, stats

from archloop.ranking.table import Floats, Table

NUM_SPREADS = 40
NUM_SCALES = 15
WIDEST = 3.0
"""Largest spread between stacks that is considered, in ranges of the estimates."""


class Draws:
    """Draws of the true values.

    Attributes:
        values_KNM: true values.
        means_NM: their means, with less chance in them than the mean of `values_KNM` has.
        reliability_M: how well the estimates rank stacks: the correlation to expect between this
            study and its repetition, 1 where both order stacks alike, 0 where estimates are noise.
    """

    def __init__(self, table: Table, seed: int, num_draws: int) -> None:
        rng = np.random.default_rng(seed)
        num_stacks, num_objectives = table.mean_NM.shape
        self.values_KNM = np.empty((num_draws, num_stacks, num_objectives))
        self.means_NM = np.empty((num_stacks, num_objectives))
        self.reliability_M = np.empty(num_objectives)
        scales_KNM = table.scales(rng, num_draws)
        for column in range(num_objectives):
            self._draw(table, column, rng, scales_KNM[:, :, column])

    def _draw(self, table: Table, column: int, rng: np.random.Generator, scales_KN: Floats) -> None:
        y_N, se_N = table.mean_NM[:, column], table.se_NM[:, column]
        shared_N = table.shared_NM[:, column]
        num_draws = len(scales_KN)
        width = float(np.ptp(y_N)) or float(se_N.max()) or 1.0
        # The grid of spreads is finest near zero, where it is decided whether the stacks differ at
        # all.
        edge = np.linspace(0, 1, NUM_SPREADS + 1) ** 2 * WIDEST * width
        spread_S, weight_S = (edge[1:] + edge[:-1]) / 2, np.diff(edge)
        df = table.pool_df(column)
        quantile = (np.arange(NUM_SCALES) + 0.5) / NUM_SCALES
        scale_C = np.ones(1) if math.isinf(df) else np.sqrt(df / special.chdtri(df, quantile))
        spread_G = np.tile(spread_S, len(scale_C))
        scale_G = np.repeat(scale_C, len(spread_S))
        log_weight_G = np.tile(np.log(weight_S), len(scale_C))
        variance_GN = np.where(shared_N, scale_G[:, None] ** 2, 1.0) * se_N**2
        precision_GN = 1 / (variance_GN + spread_G[:, None] ** 2)
        total_G = precision_GN.sum(1)
        mean_G = (precision_GN * y_N).sum(1) / total_G
        log_G = log_weight_G + 0.5 * (
            np.log(precision_GN).sum(1)
            - np.log(total_G)
            - (precision_GN * (y_N - mean_G[:, None]) ** 2).sum(1)
        )
        chance_G = np.exp(log_G - log_G.max())
        cell_K = rng.choice(len(log_G), num_draws, p=chance_G / chance_G.sum())
        spread_K, scale_K = spread_G[cell_K], scale_G[cell_K]
        mu_K = mean_G[cell_K] + rng.standard_normal(num_draws) / np.sqrt(total_G[cell_K])
        scale_KN = np.where(shared_N, scale_K[:, None], scales_KN)
        variance_KN = (scale_KN * se_N) ** 2
        pull_KN = variance_KN / (variance_KN + spread_K[:, None] ** 2)
        # The posterior mean of each value in each draw. Averaged over draws without the value's own
        # noise, stacks with equal readings get exactly equal means.
        given_KN = y_N + pull_KN * (mu_K[:, None] - y_N)
        self.means_NM[:, column] = given_KN.mean(0)
        noise_KN = np.sqrt(variance_KN * (1 - pull_KN))
        self.values_KNM[:, :, column] = given_KN + noise_KN * rng.standard_normal(given_KN.shape)
        is_equal = bool((shared_N | (se_N == 0)).all())
        self.reliability_M[column] = (
            _share(spread_K, np.sqrt(variance_KN.mean(1)))
            if is_equal
            else _kept(y_N, self.values_KNM[:, :, column])
        )


def _share(spread_K: Floats, noise_K: Floats) -> float:
    """The share of the variance of estimates that is variance of the true values.

    The intraclass correlation, for noise that is equal over stacks; the median over the posterior.
    """
    seen_K = spread_K**2 + noise_K**2
    return float(np.median(spread_K**2 / np.where(seen_K > 0, seen_K, 1.0)))


def _kept(estimates_N: Floats, values_KN: Floats) -> float:
    """The square of the mean rank correlation of estimates and true values.

    For noise that is not equal over stacks. The share above would be that of the mean variance,
    which is the noisiest stack's: known with few degrees of freedom it may be of any size, the more
    so the more stacks there are.
    """
    # Of equal estimates none is ahead, whatever the true values.
    ranks_N = stats.rankdata(estimates_N)
    ranks_KN = stats.rankdata(values_KN, axis=1)
    centred_N, centred_KN = ranks_N - ranks_N.mean(), ranks_KN - ranks_KN.mean(1, keepdims=True)
    size_K = np.linalg.norm(centred_N) * np.linalg.norm(centred_KN, axis=1)
    correlation_K = centred_KN @ centred_N / np.where(size_K > 0, size_K, 1.0)
    return float(max(0.0, correlation_K.mean()) ** 2)
