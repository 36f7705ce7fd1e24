"""Agreement: of two sentences that differ in the verb's number alone, the grammatical is likelier.

Minimal pairs in the manner of BLiMP (arXiv 1912.00582), drawn from word lists: between subject and
verb stands a phrase whose noun has the other number, so that the nearest noun misleads. Splits are
parted by the subject's noun: no test subject stands in a training sentence.
"""

import numpy as np

from archloop.evals.base import Split
from archloop.evals.generation import generator
from archloop.evals.text_tasks import Choice, ChoiceTask, NoSettings

_SUBJECTS = (
    *("boy", "girl", "teacher", "doctor", "farmer", "lawyer", "pilot", "driver", "writer"),
    *("painter", "student", "king", "queen", "author", "officer", "author", "dog", "horse"),
    *("bird", "cat", "cow", "wolf", "letter", "book", "report", "picture", "song", "story"),
)
_OTHERS = ("house", "table", "river", "garden", "window", "road", "tree", "car", "school", "shop")
_LINKS = ("near", "behind", "beside", "in front of", "above", "next to")
_VERBS = (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"), ("seems", "seem"))
_ENDINGS = {
    "is": (" old.", " new.", " here.", " missing."),
    "was": (" old.", " new.", " here.", " missing."),
    "has": (" a name.", " been seen.", " changed."),
    "does": (" not move.", " not matter."),
    "seems": (" old.", " new.", " strange."),
}
_TEST_SHARE = 3
"""One subject in this many is for testing."""


class Agreement(ChoiceTask):
    """Agreement of subject and verb over a distracting noun."""

    category = "grammar"
    Config = NoSettings

    @property
    def chance(self) -> float:
        """One of two."""
        return 0.5

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        rng = generator(split, seed)
        subjects = [
            noun
            for index, noun in enumerate(dict.fromkeys(_SUBJECTS))
            if (index % _TEST_SHARE == 0) == (split == "test")
        ]
        return [_question(rng, subjects) for _ in range(num_examples)]


def _question(rng: np.random.Generator, subjects: list[str]) -> Choice:
    is_plural = bool(rng.integers(2))
    subject, other = str(rng.choice(subjects)), str(rng.choice(_OTHERS))
    noun = _plural(subject) if is_plural else subject
    distraction = other if is_plural else _plural(other)
    singular, plural = _VERBS[rng.integers(len(_VERBS))]
    ending = str(rng.choice(_ENDINGS[singular]))
    context = f"The {noun} {rng.choice(_LINKS)} the {distraction}"
    choices = (f" {singular}{ending}", f" {plural}{ending}")
    return Choice(context, choices, int(is_plural))


def _plural(noun: str) -> str:
    irregular = {"wolf": "wolves", "story": "stories"}
    return irregular.get(noun, f"{noun}s")
