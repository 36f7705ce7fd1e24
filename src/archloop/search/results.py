"""What a study knows of its told trials, in memory: results by number, rungs, front, hypervolume.

The front and its hypervolume here are those of the mean values at rung 0 and serve to show how far
a search has come; what a study claims is settled by `ranking` with the intervals.
"""

from collections.abc import Sequence

import numpy as np

from archloop.ranking import front
from archloop.ranking.objectives import as_point
from archloop.ranking.record import Objective, Objectives
from archloop.search.rungs import Standings
from archloop.search.telling import Finished
from archloop.space.genome import Genome
from archloop.store.database import Stored
from archloop.store.record import Outcome


class Results:
    """The told trials of a study.

    Args:
        wanted: the study's objectives.
        num_rungs: of its trainings.

    Attributes:
        told: trials that have ended, by number.
        at_rung: what each reached, for each rung.
        front: mean values at rung 0 of the trials that no other dominates, one a row.
        hypervolume: of that front.
    """

    def __init__(self, wanted: Sequence[Objective], num_rungs: int) -> None:
        self.told: dict[int, Finished] = {}
        self.at_rung = [Standings() for _ in range(num_rungs)]
        self.front = np.empty((0, len(wanted)))
        self.hypervolume = 0.0
        self._wanted = wanted

    @property
    def num_originals(self) -> int:
        """Told trials that repeat no other."""
        return sum(not each.stored.is_replicate for each in self.told.values())

    def by_number(self) -> list[Finished]:
        """The trials told, by number, whatever the order in which they ended."""
        return [self.told[number] for number in sorted(self.told)]

    def gain(self, result: Outcome, worst: Objectives) -> float | None:
        """What a trial that has just ended adds to the hypervolume; None if it was not trained.

        Args:
            result: of the trial.
            worst: the reference point.
        """
        if result.state != "complete":
            return None
        points = np.vstack([self.front, as_point(result.by_rung[0], self._wanted)])
        volume = front.hypervolume(points, as_point(worst, self._wanted))
        return max(0.0, volume - self.hypervolume)

    def remember(self, stored: Stored, result: Outcome) -> None:
        """Take in how a trial ended, or how far it has come since it was told first."""
        known = self.told.get(stored.number)
        genome = genome_of(stored) if known is None else known.genome
        self.told[stored.number] = Finished(stored, genome, result)
        if result.state == "complete" and known is None:
            if result.scored:
                point = as_point(result.by_rung[0], self._wanted)
                points = np.vstack([self.front, point])
                self.front = points[front.nondominated(points)]
            self.hypervolume += result.hypervolume_gain or 0.0
        for rung, objectives in enumerate(result.by_rung):
            self.at_rung[rung].add(stored.number, objectives)


def genome_of(stored: Stored) -> Genome | None:
    """A trial's genome, if it has one."""
    genome = stored.candidate.genome
    return None if genome is None else Genome.model_validate(genome)
