"""How large noise is, learned from all stacks at once.

One stack's own variance rests on a few readings; all stacks together show what is usual. A stack's
variance is shrunk towards the usual one as far as stacks do not differ more than chance explains
(G. K. Smyth 2004, "Linear models and empirical Bayes methods", section 6.2: the estimators of
limma).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
MAX_NEWTON_STEPS = 50


class Variance(NamedTuple):
    """A variance of one reading.

    Attributes:
        value: its estimate.
        df: degrees of freedom behind it, which may be a fraction.
        shared: it is the pool's alone, so that its error is common to all that use it.
    """

    value: float
    df: float
    shared: bool = False


class Pool(NamedTuple):
    """The noise of a figure over all stacks.

    Attributes:
        value: the usual variance of one reading.
        df: degrees of freedom of the usual variance, as a prior for one stack's: infinite if
            stacks do not differ in noise by more than chance.
        total_df: degrees of freedom of all stacks together.
    """

    value: float
    df: float
    total_df: float

    def of_stack(self, own: Variance | None = None) -> Variance:
        """The variance of a stack, shrunk towards the pool's.

        Args:
            own: from the stack's own readings; None if it has a single one.
        """
        if own is None or own.df == 0:
            if math.isinf(self.df):
                return Variance(self.value, self.total_df, shared=True)
            return Variance(self.value, min(self.df, self.total_df))
        if math.isinf(self.df):
            return Variance(self.value, self.total_df, shared=True)
        df = self.df + own.df
        value = (self.df * self.value + own.df * own.value) / df
        return Variance(value, min(df, self.total_df))


def of_values(values: Sequence[float]) -> Variance:
    """Of repeated readings of one stack, at least two."""
    array = np.asarray(values, np.float64)
    assert len(array) >= 2, "one reading has no variance"
    return Variance(float(array.var(ddof=1)), len(array) - 1)


def pooled(variances: Sequence[Variance]) -> Pool:
    """The pool of stacks' own variances.

    Args:
        variances: one a stack, of at least one stack; the stacks need not be equally well known.

    Raises:
        ValueError: none has a degree of freedom.
    """
    kept = [variance for variance in variances if variance.df > 0]
    if not kept:
        raise ValueError("no stack was measured twice, so its noise is unknown")
    value_N = np.array([variance.value for variance in kept])
    df_N = np.array([variance.df for variance in kept])
    total_df = float(df_N.sum())
    mean = float((value_N * df_N).sum() / total_df)
    if len(kept) < 3 or mean == 0:
        return Pool(mean, math.inf, total_df)
    # A variance of exactly zero has no logarithm; a hundred thousandth of the usual stands for it.
    log_N = np.log(np.maximum(value_N, 1e-5 * mean))
    centred_N = log_N - special.digamma(df_N / 2) + np.log(df_N / 2)
    spread = centred_N.var(ddof=1) - special.polygamma(1, df_N / 2).mean()
    if spread <= 0:
        return Pool(mean, math.inf, total_df)
    prior_df = 2 * _inverse_trigamma(float(spread))
    log_value = centred_N.mean() + special.digamma(prior_df / 2) - math.log(prior_df / 2)
    return Pool(math.exp(log_value), prior_df, total_df)


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on its reciprocal, which is almost linear."""
    x = 0.5 + 1 / value
    for _ in range(MAX_NEWTON_STEPS):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x
