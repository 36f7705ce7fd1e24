"""What a front stack's lead is worth where targets quantise: quality lost beside quality led by.

A stack leads by what it has more of quality than the best of those that are as good in everything
else: once it has lost more than that, one of them dominates it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from archloop.evals.base import Score
from archloop.findings.verdict import Row, Verdict
from archloop.ranking.objectives import of_scores
from archloop.store.record import StudyRecord

QUALITY = "quality"


class Loss(NamedTuple):
    """A proxy before and after a quantisation.

    Attributes:
        number: of the trial.
        runtime: that quantises.
        quant: its name for it.
        before: scores in float32.
        after: scores as the engine computes.
        lost: quality, in the study's units; negative if it won.
        lead: over the best stack that is as good in all else; None where there is none.
    """

    number: int
    runtime: str
    quant: str
    before: Mapping[str, Score]
    after: Mapping[str, Score]
    lost: float
    lead: float | None

    @property
    def is_marked(self) -> bool:
        """Whether it leads, and loses more than it leads by."""
        # The front is that of shrunk means, so that one of it may not lead by its estimates. A loss
        # that is no number, as of scores that overflowed, is larger than any lead.
        return self.lead is not None and self.lead >= 0 and not self.lost <= self.lead


def front(found: Verdict) -> list[Row]:
    """The stacks that are reported as the front, the reference run aside."""
    return [found.rows[index] for index in found.comparison.reported if index >= 0]


def loss(
    study: StudyRecord,
    found: Verdict,
    row: Row,
    engine: tuple[str, str],
    before: Mapping[str, Score],
    after: Mapping[str, Score],
) -> Loss:
    """What a quantisation takes from a front stack.

    Args:
        study: whose scale says what quality is.
        found: what is said of its stacks.
        row: the stack.
        engine: runtime and quantisation.
        before: its proxy's scores in float32.
        after: its proxy's scores as the engine computes.
    """
    assert study.scale is not None, "a study of devices has no quality to lose"
    qualities = [
        of_scores(study.scale, [scores], study.objectives)[QUALITY].mean
        for scores in (before, after)
    ]
    runtime, quant = engine
    lost = qualities[0] - qualities[1]
    return Loss(row.trial.number, runtime, quant, before, after, lost, lead(study, found, row))


def lead(study: StudyRecord, found: Verdict, row: Row) -> float | None:
    """How much more quality a stack has than the best of those that are as good in all else."""
    own = _values(study, row)
    others = [_values(study, each) for each in (found.reference, *found.rows) if each is not row]
    as_good = [
        other[QUALITY]
        for other in others
        if all(other[name] >= value for name, value in own.items() if name != QUALITY)
    ]
    return own[QUALITY] - max(as_good) if as_good else None


def _values(study: StudyRecord, row: Row) -> dict[str, float]:
    """Estimates by objective, more always better."""
    signs = {each.name: 1.0 if each.direction == "maximize" else -1.0 for each in study.objectives}
    return {name: signs[name] * at.mean for name, at in row.place.estimates.items()}
