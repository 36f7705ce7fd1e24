"""Facts that many texts state: of four candidates, the one that belongs to the word in question.

What a model knows, as far as a few dozen facts of each variant can tell. The candidates are answers
to other questions of the same variant and split, so that their form gives nothing away. A fact
belongs to one split, by its place in the list.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from archloop.evals.base import Split
from archloop.evals.generation import generator
from archloop.evals.text_tasks import Choice, ChoiceTask

Variant = Literal["capital", "continent", "symbol", "opposite", "past", "group"]

_FACTS: dict[Variant, str] = {
    "capital": """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria
        Vienna, Poland Warsaw, Hungary Budapest, Greece Athens, Norway Oslo, Sweden Stockholm,
        Finland Helsinki, Denmark Copenhagen, Ireland Dublin, Russia Moscow, Ukraine Kyiv, Turkey
        Ankara, Egypt Cairo, Kenya Nairobi, Japan Tokyo, China Beijing, India Delhi, Iran Tehran,
        Iraq Baghdad, Cuba Havana, Peru Lima, Chile Santiago, Canada Ottawa, Australia Canberra,
        Thailand Bangkok, Vietnam Hanoi, Syria Damascus, Morocco Rabat, Bulgaria Sofia, Serbia
        Belgrade, Belgium Brussels""",
    "continent": """France Europe, Kenya Africa, Japan Asia, Brazil America, Germany Europe, Egypt
        Africa, China Asia, Peru America, Italy Europe, Nigeria Africa, India Asia, Chile America,
        Spain Europe, Ghana Africa, Vietnam Asia, Canada America, Norway Europe, Morocco Africa,
        Iran Asia, Mexico America, Poland Europe, Ethiopia Africa, Thailand Asia, Argentina
        America, Greece Europe, Angola Africa, Nepal Asia, Bolivia America""",
    "symbol": """hydrogen H, helium He, carbon C, nitrogen N, oxygen O, sodium Na, magnesium Mg,
        aluminium Al, silicon Si, sulfur S, chlorine Cl, potassium K, calcium Ca, iron Fe, copper
        Cu, zinc Zn, silver Ag, tin Sn, iodine I, gold Au, mercury Hg, lead Pb, uranium U, nickel
        Ni, neon Ne, lithium Li""",
    "opposite": """hot cold, big small, old new, high low, long short, fast slow, hard soft, light
        dark, open closed, full empty, rich poor, early late, strong weak, wet dry, good bad, clean
        dirty, deep shallow, thick thin, true false, young aged, near far, loud quiet, happy sad,
        wide narrow, sharp blunt, sweet bitter, safe dangerous, right wrong, up down, left right""",
    "past": """go went, see saw, take took, give gave, come came, know knew, think thought, find
        found, tell told, leave left, feel felt, bring brought, begin began, keep kept, hold held,
        write wrote, stand stood, hear heard, run ran, speak spoke, buy bought, sell sold, eat ate,
        drink drank, sing sang, break broke, choose chose, drive drove, fly flew, teach taught""",
    "group": """apple fruit, hammer tool, dog animal, chair furniture, pear fruit, saw tool, cat
        animal, table furniture, plum fruit, drill tool, horse animal, bed furniture, cherry fruit,
        wrench tool, cow animal, sofa furniture, grape fruit, chisel tool, sheep animal, desk
        furniture, peach fruit, pliers tool, goat animal, cupboard furniture, lemon fruit, axe
        tool, lion animal, shelf furniture""",
}
_SAID: dict[Variant, str] = {
    "capital": "The capital of {} is",
    "continent": "{} is a country in",
    "symbol": "The chemical symbol of {} is",
    "opposite": "The opposite of {} is",
    "past": "Today I {}, and yesterday I",
    "group": "The word {} names a kind of",
}
_NUM_CHOICES = 4
_TEST_SHARE = 2
"""One fact in this many is for testing."""


class Facts(ChoiceTask):
    """Common knowledge, a variant at a time."""

    version = 2
    category = "knowledge"
    num_test = 128

    class Config(BaseModel):
        """Which facts."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        variant: Variant = "capital"

    config: Config

    @property
    def chance(self) -> float:
        """One of four."""
        return 1 / _NUM_CHOICES

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        rng = generator(split, seed)
        pairs = facts(self.config.variant)
        values = list(dict.fromkeys(value for _, value in pairs))
        # Facts of one answer are parted among themselves, so that every answer which several facts
        # share is right in both splits. A model that trains on answers which are never right in the
        # test would score less than one that guesses.
        together = sorted(pairs, key=lambda pair: values.index(pair[1]))
        mine = [
            pair
            for number, pair in enumerate(together)
            if (number % _TEST_SHARE == 0) == (split == "test")
        ]
        # For the same reason the wrong choices are answers of other facts of the split.
        values = list(dict.fromkeys(value for _, value in mine))
        return [self._question(rng, mine, values) for _ in range(num_examples)]

    def _question(
        self, rng: np.random.Generator, pairs: list[tuple[str, str]], values: list[str]
    ) -> Choice:
        word, right = pairs[rng.integers(len(pairs))]
        others = [str(v) for v in rng.permutation(values) if v != right and v != word]
        chosen = [right, *others[: _NUM_CHOICES - 1]]
        order = rng.permutation(_NUM_CHOICES)
        choices = tuple(f" {chosen[i]}." for i in order)
        context = _SAID[self.config.variant].format(word)
        return Choice(context, choices, int(np.flatnonzero(order == 0)[0]))


def facts(variant: Variant) -> list[tuple[str, str]]:
    """The facts of a variant: word and answer."""
    return [(word, value) for word, value in (each.split() for each in _FACTS[variant].split(","))]
