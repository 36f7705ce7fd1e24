"""The figures that candidates are ranked by, and the budgets that they break, as plain records."""

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokenBudget(_Record):
    """A budget that a measured value exceeds.

    Attributes:
        metric: a field of `Figures`.
        relative: the limit and value are ratios to the reference preset.
        value: estimate; `low` is the interval's lower bound, which exceeds `limit`.
    """

    metric: str
    context: int
    target: str
    relative: bool
    limit: float
    value: float
    low: float


class Objectives(_Record):
    """What the search optimises: quality up, latency and memory (ratios to the reference) down.

    The standard errors are the measured noise of seeds and timings.
    """

    quality: float
    latency: float
    memory: float
    quality_se: float = 0.0
    latency_se: float = 0.0
    memory_se: float = 0.0
