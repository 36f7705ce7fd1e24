"""What is fixed before trial 0: the reference preset's outcome, its noise, the reference point."""

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from archloop.evals.base import Score
from archloop.profiling.record import Identity
from archloop.proxy.record import Rung
from archloop.ranking.anchors import Scale
from archloop.ranking.record import Objectives, Readings
from archloop.store.record import Candidate, Costs, FamilyRate


class ReferenceRun(BaseModel):
    """What was fixed before trial 0; an attribute of the study.

    Attributes:
        candidate: the reference preset.
        worst: the reference point.
        objectives: of the reference preset, by rung.
        scores: of the reference preset at rung 0, averaged over seeds.
        identities: what it was measured on, by target.
        noise: readings of stacks that were read several times and are no trials, by figure: what
            the reference preset showed beside itself, and trainings of the same stack.
        scale: how scores become quality, and the anchor stacks that it rests on. None: no score
            tells these apart, so the study is one of devices and trains nothing more.
        dropped: why each other score does not count.
        anchors: scores, averaged over seeds, of the anchor stacks by name, the reference aside.
        files: checksums of its stage files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidate: Candidate
    costs: Costs
    worst: Objectives
    objectives: tuple[Objectives, ...]
    scores: dict[str, Score]
    identities: dict[str, Identity]
    scale: Scale | None
    dropped: dict[str, str]
    noise: tuple[dict[str, Readings], ...]
    anchors: dict[str, dict[str, Score]]
    learning_rates: dict[str, FamilyRate] = {}
    files: dict[str, str]
    seconds: dict[str, float]

    def learning_rate(self, layout: Sequence[str]) -> float | None:
        """For a stack: geometric mean over blocks of each family's tuned rate; None if untuned."""
        return mean_rate(self.learning_rates, layout)


def averaged(by_seed: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Scores averaged over seeds, with the standard error over examples.

    How much seeds differ is a noise of its own (`ReferenceRun.noise`).
    """
    count = len(by_seed)
    averaged = {}
    for task, first in by_seed[0].items():
        values = [scores[task].value for scores in by_seed]
        error = math.sqrt(math.fsum(s[task].standard_error ** 2 for s in by_seed)) / count
        averaged[task] = first.model_copy(
            update={
                "value": math.fsum(values) / count,
                "standard_error": error,
                "num_examples": sum(scores[task].num_examples for scores in by_seed),
            }
        )
    return averaged


def one_rung(by_seed: Sequence[Rung]) -> Rung:
    """A rung that was trained with several seeds, as a record has it: scores averaged over them.

    A training that diverged has no scores, so that there is no average: the rung is that training.
    """
    for rung in by_seed:
        if rung.diverged:
            return rung
    scores = averaged([rung.scores for rung in by_seed])
    return by_seed[0].model_copy(update={"scores": scores} if len(by_seed) > 1 else {})


def mean_rate(rates: Mapping[str, FamilyRate], layout: Sequence[str]) -> float | None:
    """Geometric mean over blocks, less those of mixers nobody tuned; None if all are such."""
    names = [name for mixers in layout for name in mixers.split("+")]
    known = [rates[name].value for name in names if name in rates]
    return math.exp(math.fsum(map(math.log, known)) / len(known)) if known else None
