"""Key-value maps in text: things that lie in places, and where one of them lies.

The question is put by likelihood, between the places that the text names, so that it has signal
for a model that cannot write a reply yet. Copies of one pattern, `find`, `reverse` and `last`
differ in what must be looked up: the place of a thing, the thing at a place, or the latest of
several moves.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.questions import drawn
from archloop.evals.text_tasks import Choice, ChoiceTask
from archloop.evals.words import PLACES, THINGS


class KeyValue(ChoiceTask):
    """Looking up what the text has said."""

    category = "knowledge"

    class Config(BaseModel):
        """How many pairs, and what is asked of them."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        num_pairs: int = Field(default=6, ge=2, le=16)
        ask: Literal["find", "reverse", "last"] = "find"

    config: Config

    @property
    def chance(self) -> float:
        """One of the values that the text names."""
        return 1 / self.config.num_pairs

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        return drawn(self._draw, split, seed, num_examples)

    def _draw(self, rng: np.random.Generator) -> Choice:
        num = self.config.num_pairs
        things = [str(word) for word in rng.permutation(THINGS)[:num]]
        places = [str(word) for word in rng.permutation(PLACES)[:num]]
        right = int(rng.integers(num))
        if self.config.ask == "last":
            # One thing is moved from place to place: the last move counts.
            said = " ".join(f"The {things[0]} is in the {place}." for place in places)
            return Choice(f"{said} Now the {things[0]} is in the", _spaced(places), num - 1)
        said = " ".join(
            f"The {thing} is in the {place}." for thing, place in zip(things, places, strict=True)
        )
        if self.config.ask == "find":
            return Choice(f"{said} So the {things[right]} is in the", _spaced(places), right)
        return Choice(f"{said} In the {places[right]} is the", _spaced(things), right)


def _spaced(words: list[str]) -> tuple[str, ...]:
    return tuple(f" {word}." for word in words)
