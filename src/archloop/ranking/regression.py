"""How much of an outcome each of several features explains, from few and noisy observations.

A linear model whose coefficients are shrunk as the data say (empirical Bayes): how far coefficients
and what the model misses spread is found by restricted maximum likelihood, beside the noise that is
known of each observation. With hardly any data all contributions are near 0 and their intervals
wide, and none is invented.

Shape suffixes: N observations, K features.
"""

import itertools
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
    total = float(y_N.var()) or 1.0
    pairs = itertools.product(total * _SPREADS, total * _MISFITS)
    spread, misfit = min(pairs, key=lambda pair: _badness(x_NK, y_N, known_N, *pair))
    ones_N = np.ones((len(y_N), 1))
    design = np.hstack([ones_N, x_NK])
    weight_N = 1 / (misfit + known_N)
    information = design.T @ (design * weight_N[:, None])
    prior = np.diag([0.0, *[1 / spread] * x_NK.shape[1]])
    cov = np.linalg.inv(information + prior)
    mean = cov @ (design.T @ (weight_N * y_N))
    used = float(np.trace(cov @ information))
    return Fit(mean[1:], cov[1:, 1:], max(1.0, len(y_N) - used))


def _badness(x_NK: Floats, y_N: Floats, known_N: Floats, spread: float, misfit: float) -> float:
    """Minus twice the restricted log likelihood."""
    v_NN = spread * (x_NK @ x_NK.T) + np.diag(misfit + known_N)
    root = np.linalg.cholesky(v_NN)
    half = np.linalg.solve(root, np.column_stack([np.ones(len(y_N)), y_N]))
    ones_N, out_N = half.T
    constant = float(ones_N @ out_N) / float(ones_N @ ones_N)
    left_N = out_N - constant * ones_N
    logs = 2 * float(np.log(np.diag(root)).sum()) + math.log(float(ones_N @ ones_N))
    return logs + float(left_N @ left_N)
