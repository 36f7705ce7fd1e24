"""A Gaussian process over features of genomes, for one figure: scikit-learn's, with known noise.

A linear part, since costs and benefits of blocks nearly add up, and a smooth part for what does
not; each trial's own standard error, and a term for what features leave out.

Shape suffixes: N trials, C candidates, F features.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UserError

Floats = NDArray[np.float64]
MAX_FIT = 96
"""Trials that hyper-parameters are fitted to; more would take seconds and change little."""
JITTER = 1e-8
"""Variance added to every trial's noise, so that matrices can be inverted."""
MAX_ITERATIONS = 12
"""Steps of the optimiser that fits hyper-parameters."""


class Data(NamedTuple):
    """What was measured of one figure.

    Attributes:
        x_NF: features.
        y_N: values.
        se_N: their standard errors.
    """

    x_NF: Floats
    y_N: Floats
    se_N: Floats


class Surrogate:
    """The posterior of one figure.

    Args:
        data: measured values, at least two.
        kernel: fitted one (`fitted`).
    """

    def __init__(self, data: Data, kernel: Any) -> None:
        self._mean, self._scale = _moments(data.y_N)
        noise_N = (data.se_N / self._scale) ** 2
        z_N = (data.y_N - self._mean) / self._scale
        self._process = _process(kernel, noise_N, None).fit(data.x_NF, z_N)
        # What is known of the trials themselves includes the part of a stack's value that its
        # features do not explain, which no other stack shares.
        prior_NN = self._process.kernel_(data.x_NF)
        gain_NN = np.linalg.solve(prior_NN + np.diag(noise_N + JITTER), prior_NN).T
        self._known = gain_NN @ z_N, prior_NN - gain_NN @ prior_NN

    def known(self, index_C: NDArray[np.int64]) -> Floats:
        """Posterior mean of the true values of trials, by their place in the data, (C,)."""
        return self._mean + self._scale * self._known[0][index_C]

    def known_draws(
        self, index_C: NDArray[np.int64], count: int, rng: np.random.Generator
    ) -> Floats:
        """Joint draws of those, (count, C)."""
        mean_N, covariance_NN = self._known
        return self._drawn(mean_N[index_C], covariance_NN[np.ix_(index_C, index_C)], count, rng)

    def marginals(self, x_CF: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the figure's true value for other genomes, (C,) each."""
        mean_C, sd_C = self._process.predict(x_CF, return_std=True)
        return self._mean + self._scale * mean_C, self._scale * sd_C

    def _drawn(
        self, mean_C: Floats, covariance_CC: Floats, count: int, rng: np.random.Generator
    ) -> Floats:
        values, vectors = np.linalg.eigh((covariance_CC + covariance_CC.T) / 2)
        root_CC = vectors * np.sqrt(np.maximum(values, 0.0))
        normal = rng.standard_normal((count, len(mean_C)))
        drawn: Floats = self._mean + self._scale * (mean_C + normal @ root_CC.T)
        return drawn


def fitted(data: Data) -> Any:
    """The kernel under which the values are likeliest, on evenly spread trials if there are many.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import kernels
    except ImportError as error:
        raise UserError(
            "strategy 'model' needs scikit-learn; install it with: pip install 'archloop[model]'"
        ) from error
    index = np.unique(np.linspace(0, len(data.y_N) - 1, MAX_FIT).round().astype(int))
    mean, scale = _moments(data.y_N)
    kernel = (
        kernels.ConstantKernel(0.3, (1e-3, 1e1)) * kernels.DotProduct(1.0, "fixed")
        + kernels.ConstantKernel(0.5, (1e-3, 1e1)) * kernels.RBF(1.5, (0.4, 1e1))
        + kernels.WhiteKernel(0.05, (1e-4, 1.0))
    )
    process = _process(kernel, (data.se_N[index] / scale) ** 2, _few_steps)
    with warnings.catch_warnings():
        # The bounds are a prior, and hyper-parameters may well end at one.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(data.x_NF[index], (data.y_N[index] - mean) / scale)
    return process.kernel_


def _process(kernel: Any, noise_N: Floats, optimizer: Any) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor

    return GaussianProcessRegressor(kernel, alpha=noise_N + JITTER, optimizer=optimizer)


def _few_steps(objective: Any, start: Floats, bounds: Sequence[Any]) -> tuple[Floats, float]:
    from scipy.optimize import minimize

    options = {"maxiter": MAX_ITERATIONS}
    found = minimize(objective, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    return found.x, found.fun


def _moments(y_N: Floats) -> tuple[float, float]:
    return float(y_N.mean()), float(y_N.std()) or 1.0
