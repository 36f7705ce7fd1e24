"""What a study keeps of its trainings while the front moves: checkpoints, and weights.

A trial that climbs though its checkpoint is gone is trained again from its seed.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from archloop.ranking.estimates import estimates, pools
from archloop.ranking.membership import surely_dominated
from archloop.ranking.record import Objective, Readings
from archloop.ranking.table import table
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

    def forget(
        self,
        at_rung: Sequence[Standings],
        noise: Sequence[Mapping[str, Readings]],
        busy: Collection[int] = (),
    ) -> None:
        """Remove checkpoints of trials that have left the front, and weights where `keep` is front.

        Args:
            at_rung: the told trials at each rung.
            noise: readings of stacks that are no trials and were read several times.
            busy: trials under way: a training that waits for its turn was told which checkpoint to
                go on from, so these keep theirs until they are told themselves.
        """
        worth = may_be_on_a_front(at_rung, noise, self._recipe.objectives) | set(busy)
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


def may_be_on_a_front(
    at_rung: Sequence[Standings],
    noise: Sequence[Mapping[str, Readings]],
    wanted: Sequence[Objective],
) -> set[int]:
    """Numbers of the trials that no other surely dominates at some rung that they reached.

    What is gone cannot come back, so a trial that noise alone may have put behind another stays.

    Args:
        at_rung: the told trials at each rung.
        noise: readings of stacks that are no trials.
        wanted: the study's objectives.
    """
    found: set[int] = set()
    if not at_rung[0].by_number:
        return found
    known = pools([*noise, *(each.values for each in at_rung[0].by_number.values())])
    for standings in at_rung:
        if standings.by_number:
            numbers = sorted(standings.by_number)
            rows = estimates([standings.by_number[n].values for n in numbers], known)
            lost_N = surely_dominated(table(rows, wanted))
            found |= {numbers[index] for index in np.flatnonzero(~lost_N)}
    return found
