"""What a study keeps of its trainings while the front moves: checkpoints, and weights.

A trial that climbs though its checkpoint is gone is trained again from its seed.
"""

import shutil
from collections.abc import Sequence

import numpy as np

from archloop.ranking.front import nondominated
from archloop.ranking.objectives import as_point
from archloop.ranking.record import Objective
from archloop.search.recipe.recipe import Recipe
from archloop.search.rungs import Standings
from archloop.store.folder import StudyFolder


class Keeper:
    """Knows which trials have files that only trials of the front need.

    Attributes:
        with_checkpoint: numbers of the trials that can go on with their training.
        with_weights: of those whose proxy is kept.
    """

    def __init__(self, home: StudyFolder, recipe: Recipe) -> None:
        self._home, self._recipe = home, recipe
        self.with_checkpoint: set[int] = set()
        self.with_weights: set[int] = set()

    def remember(self, number: int) -> None:
        """A trial was told: see what it left."""
        files = self._home.trial(number)
        if files.has_checkpoint():
            self.with_checkpoint.add(number)
        if files.weights.exists():
            self.with_weights.add(number)

    def forget(self, at_rung: Sequence[Standings]) -> None:
        """Remove checkpoints of trials that have left the front, and weights if only its stay."""
        worth = on_a_front(at_rung, self._recipe.objectives)
        for number in self.with_checkpoint - worth:
            self._home.trial(number).forget_checkpoints()
        self.with_checkpoint &= worth
        if self._recipe.keep == "front":
            for number in self.with_weights - worth:
                shutil.rmtree(self._home.trial(number).weights, ignore_errors=True)
            self.with_weights &= worth

    def finish(self) -> None:
        """The study has ended: nothing climbs any more."""
        for number in self.with_checkpoint:
            self._home.trial(number).forget_checkpoints()


def on_a_front(at_rung: Sequence[Standings], wanted: Sequence[Objective]) -> set[int]:
    """Numbers of the trials that no other dominates at some rung that they reached.

    By point values: more generous than the reported front for those that noise favoured, and quick
    beside a trial.

    Args:
        at_rung: the told trials at each rung.
        wanted: the study's objectives.
    """
    found = set()
    for standings in at_rung:
        if standings.by_number:
            numbers = sorted(standings.by_number)
            points = np.array([as_point(standings.by_number[n], wanted) for n in numbers])
            found |= {numbers[index] for index in np.flatnonzero(nondominated(points))}
    return found
