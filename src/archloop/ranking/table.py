"""Estimates of many stacks as arrays in which less is better, and draws of their noise.

Shape suffixes: K draws, N stacks, M objectives.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.ranking.estimate import Estimate
from archloop.ranking.record import Objective

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Table(NamedTuple):
    """Estimates by stack and objective; a maximised objective is negated.

    Attributes:
        mean_NM, se_NM: estimates and standard errors.
        df_NM: degrees of freedom, infinite where an error is known.
        shared_NM: where the error comes from a pool common to the objective.
    """

    mean_NM: Floats
    se_NM: Floats
    df_NM: Floats
    shared_NM: Bools

    def errors(self, rng: np.random.Generator, num_draws: int) -> Floats:
        """Draws of (estimate less truth), (K, N, M): t-distributed, pools wrong for all at once."""
        return (
            self.se_NM
            * self.scales(rng, num_draws)
            * rng.standard_normal((num_draws, *self.mean_NM.shape))
        )

    def scales(self, rng: np.random.Generator, num_draws: int) -> Floats:
        """Draws of (true standard error / estimated), (K, N, M)."""
        scale_KNM = np.ones((num_draws, *self.mean_NM.shape))
        own_NM = np.isfinite(self.df_NM) & ~self.shared_NM & (self.se_NM > 0)
        if own_NM.any():
            df_O = self.df_NM[own_NM]
            scale_KNM[:, own_NM] = np.sqrt(df_O / rng.chisquare(df_O, (num_draws, len(df_O))))
        for column in range(self.mean_NM.shape[1]):
            df = self.pool_df(column)
            if not math.isinf(df):
                common_K = np.sqrt(df / rng.chisquare(df, num_draws))
                scale_KNM[:, self.shared_NM[:, column], column] = common_K[:, None]
        return scale_KNM

    def pool_df(self, column: int) -> float:
        """Degrees of freedom of an objective's pool; infinite if none shares it."""
        return float(self.df_NM[self.shared_NM[:, column], column].min(initial=math.inf))

    def rows(self, keep_N: Bools | Ints) -> "Table":
        """Some of the stacks."""
        return Table(
            self.mean_NM[keep_N], self.se_NM[keep_N], self.df_NM[keep_N], self.shared_NM[keep_N]
        )


def table(stacks: Sequence[Mapping[str, Estimate]], objectives: Sequence[Objective]) -> Table:
    """Arrays of the estimates of stacks.

    Args:
        stacks: estimates by the name of an objective, one mapping a stack.
        objectives: the columns, in this order.

    Raises:
        KeyError: a stack lacks an objective.
    """
    shape = (len(stacks), len(objectives))
    cells = [[stack[objective.name] for objective in objectives] for stack in stacks]
    flat = [estimate for row in cells for estimate in row]
    sign_M = np.array([-1.0 if o.direction == "maximize" else 1.0 for o in objectives])
    return Table(
        np.array([e.mean for e in flat], np.float64).reshape(shape) * sign_M,
        np.array([e.se for e in flat], np.float64).reshape(shape),
        np.array([math.inf if e.df is None else e.df for e in flat], np.float64).reshape(shape),
        np.array([e.shared for e in flat], np.bool_).reshape(shape),
    )
