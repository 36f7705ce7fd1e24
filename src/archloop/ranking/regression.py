"""How much of an outcome each of several features explains, from few and noisy observations.

A linear model whose coefficients are shrunk as the data say (empirical Bayes): how far coefficients
and what the model misses spread is found by restricted maximum likelihood, beside the noise that is
known of each observation. With hardly any data all contributions are near 0 and their intervals
wide, and none is invented.

Shape suffixes: N observations, K features.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.ranking.estimate import Estimate

Floats = NDArray[np.float64]

_SPREADS = 10.0 ** np.linspace(-4, 1.5, 23)
_MISFITS = 10.0 ** np.linspace(-4, 0.5, 19)
"""Variances that are tried, as multiples of the outcome's."""


class Fit(NamedTuple):
    """Coefficients as far as the observations tell them.

    Attributes:
        mean_K: coefficients.
        cov_KK: their covariance.
        df: degrees of freedom of what is left over.
    """

    mean_K: Floats
    cov_KK: Floats
    df: float

    def contrast(self, weights_K: Floats) -> Estimate:
        """A weighted sum of coefficients."""
        variance = float(weights_K @ self.cov_KK @ weights_K)
        return Estimate(
            mean=float(weights_K @ self.mean_K), se=math.sqrt(max(variance, 0.0)), df=self.df
        )


def fit(x_NK: Floats, y_N: Floats, se_N: Sequence[float] | Floats) -> Fit:
    """Fit outcomes by features and a constant.

    Args:
        x_NK: features, of about equal scale.
        y_N: outcomes; at least three.
        se_N: known standard error of each.

    Raises:
        ValueError: fewer than three observations, or numbers that are not finite.
    """
    x_NK, y_N = np.asarray(x_NK, np.float64), np.asarray(y_N, np.float64)
    known_N = np.square(np.asarray(se_N, np.float64))
    if len(y_N) < 3 or not (np.isfinite(x_NK).all() and np.isfinite(y_N).all()):
        raise ValueError(f"{len(y_N)} observations; a fit needs three finite ones at least")
    spread, misfit = _variances(x_NK, y_N, known_N)
    ones_N = np.ones((len(y_N), 1))
    design = np.hstack([ones_N, x_NK])
    weight_N = 1 / (misfit + known_N)
    information = design.T @ (design * weight_N[:, None])
    prior = np.diag([0.0, *[1 / spread] * x_NK.shape[1]])
    cov = np.asarray(np.linalg.inv(information + prior), np.float64)
    mean = cov @ (design.T @ (weight_N * y_N))
    used = float(np.trace(cov @ information))
    return Fit(mean[1:], cov[1:, 1:], max(1.0, len(y_N) - used))


def _variances(x_NK: Floats, y_N: Floats, known_N: Floats) -> tuple[float, float]:
    """Of coefficients and of what the model misses: those tried that the data make likeliest."""
    total = float(y_N.var()) or 1.0
    spreads = total * _SPREADS
    by_misfit = [
        (_badness(x_NK, y_N, misfit + known_N, spreads), misfit) for misfit in total * _MISFITS
    ]
    badness, misfit = min(by_misfit, key=lambda pair: float(pair[0].min()))
    return float(spreads[badness.argmin()]), float(misfit)


def _badness(x_NK: Floats, y_N: Floats, noise_N: Floats, spreads: Floats) -> Floats:
    """Minus twice the restricted log likelihood, for each variance of the coefficients.

    The observations' covariance is their noise and one direction for each feature, so that its
    inverse and determinant follow from a matrix of the features' size (Woodbury), and from its
    eigenvalues for all variances at once.
    """
    weighted_NK = x_NK / noise_N[:, None]
    eigenvalues_K, turn_KK = np.linalg.eigh(x_NK.T @ weighted_NK)
    eigenvalues_K = np.clip(eigenvalues_K, 0.0, None)
    sides_N2 = np.column_stack([np.ones(len(y_N)), y_N])
    along_K2 = turn_KK.T @ (weighted_NK.T @ sides_N2)
    plain_22 = sides_N2.T @ (sides_N2 / noise_N[:, None])
    found = []
    for spread in spreads:
        shrink_K = spread / (1 + spread * eigenvalues_K)
        inner_22 = plain_22 - along_K2.T @ (shrink_K[:, None] * along_K2)
        ones, ones_y, y_y = float(inner_22[0, 0]), float(inner_22[0, 1]), float(inner_22[1, 1])
        logs = float(np.log(noise_N).sum() + np.log1p(spread * eigenvalues_K).sum())
        found.append(logs + math.log(ones) + y_y - ones_y**2 / ones)
    return np.array(found)
