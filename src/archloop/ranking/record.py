"""The figures that candidates are ranked by, and the budgets that they break, as plain records."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

QUALITY = "quality"
"""Figure of an objective that is read of scores."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokenBudget(_Record):
    """A budget that a measured value exceeds.

    Attributes:
        metric: a field of `Figures`.
        relative: the limit and value are ratios to the reference preset.
        value: estimate after the last look, which exceeds `limit`; `low` is the lower end of
            its 95% interval.
    """

    metric: str
    context: int
    target: str
    relative: bool
    limit: float
    value: float
    low: float


class Objective(_Record):
    """What is optimised.

    Attributes:
        name: in records and reports.
        direction: which way is better.
        figure: of which figure; empty: of that with the objective's name. ``quality`` and
            ``quality:<category>`` are of scores; ``latency``, ``memory`` and the metrics of a
            measurement, such as ``ttft_ms``, are ratios to the reference preset.
        contexts: how a metric is aggregated over contexts; over targets the worst one counts.
            Latency is always the mean over contexts, memory the worst, and scores have none.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    figure: str = ""
    contexts: Literal["mean", "worst"] = "mean"

    @property
    def of(self) -> str:
        """The figure's name."""
        return self.figure or self.name

    @property
    def category(self) -> str | None:
        """Of scores: their category, empty for all of them; None where a device is measured."""
        figure, _, category = self.of.partition(":")
        return category if figure == QUALITY else None


class Readings(_Record):
    """What was read of one figure of one stack.

    Attributes:
        mean: of the readings.
        sd: standard deviation of one reading, by these readings; None if there are fewer than two.
        n: independent readings: processes, trainings; 0 for a value that holds by definition, as
            the reference's ratio to itself.
    """

    mean: float
    sd: float | None = None
    n: int = 1


class Objectives(_Record):
    """What is read of a stack of each objective, by the objective's name."""

    values: dict[str, Readings]

    def mean(self, name: str) -> float:
        """The mean of an objective's readings."""
        return self.values[name].mean
