"""An estimate: a mean with its standard error and how well that error is itself known.

A standard error from three processes is a guess, so every interval uses Student's t with the
degrees of freedom behind the error, never the normal distribution.
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from archloop.profiling.statistics import t_quantile

CONFIDENCE = 0.95


class Estimate(BaseModel):
    """A mean known up to noise.

    Attributes:
        mean: the value.
        se: standard error of the mean; 0 if it is exact.
        df: degrees of freedom behind `se`; None if `se` is known without error.
        n: independent readings behind the mean (processes, trainings).
        shared: `se` comes from a pool that other estimates of the figure share, so that an error
            of the pool is an error of all of them at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    se: float = Field(default=0.0, ge=0)
    df: float | None = Field(default=None, gt=0)
    n: int = Field(default=1, ge=1)
    shared: bool = False

    def half_width(self, confidence: float = CONFIDENCE) -> float:
        """Half of the two-sided interval around the mean."""
        return t_quantile(0.5 + confidence / 2, self.df) * self.se if self.se else 0.0

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The two-sided t-interval."""
        half = self.half_width(confidence)
        return self.mean - half, self.mean + half


def of_values(values: Sequence[float]) -> Estimate:
    """Mean of independent readings with the standard error that they show themselves.

    Args:
        values: at least two.
    """
    count = len(values)
    assert count >= 2, "one reading has no standard error"
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean=mean, se=math.sqrt(variance / count), df=count - 1, n=count)


def total(parts: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """Weighted sum of independent estimates; degrees of freedom after Welch and Satterthwaite.

    Args:
        parts: at least one.
        weights: one for each; all 1 if None, so that a difference has weights (1, -1).
    """
    weights = [1.0] * len(parts) if weights is None else weights
    variances = [(w * p.se) ** 2 for w, p in zip(weights, parts, strict=True)]
    variance = math.fsum(variances)
    uncertain = math.fsum(v**2 / p.df for v, p in zip(variances, parts, strict=True) if p.df)
    return Estimate(
        mean=math.fsum(w * p.mean for w, p in zip(weights, parts, strict=True)),
        se=math.sqrt(variance),
        df=variance**2 / uncertain if uncertain > 0 else None,
        n=min(part.n for part in parts),
        shared=any(part.shared for part in parts),
    )
