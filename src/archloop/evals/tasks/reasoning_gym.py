"""Procedural problems of reasoning-gym whose answer is one short text that can be compared.

The library (arXiv 2505.24760) draws a problem from a number; which side a problem belongs to is
decided by a hash of its words, as for questions of our own. Its own graders interpret what a model
writes, some by evaluating it as an expression, and are not used: a reply is right if it is the
answer, letter by letter. Where few answers are possible, chance is what writing the commonest one
always scores.
"""

import functools
from collections import Counter
from importlib import metadata
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.questions import drawn, solved
from archloop.evals.text_tasks import Question, ReplyTask

PACKAGE, VERSION = "reasoning-gym", "0.1.25"
"""Another version may draw other problems, which would be another score."""
Subset = Literal[
    "chain_sum",
    "gcd",
    "lcm",
    "products",
    "leg_counting",
    "number_sequence",
    "simple_equations",
    "family_relationships",
    "syllogism",
    "calendar_arithmetic",
    "letter_counting",
    "spell_backward",
    "word_sequence_reversal",
    "needle_haystack",
]
SUBSETS: tuple[Subset, ...] = get_args(Subset)
_NUM_MATHEMATICS = 7
"""As many of the subsets, from the first on, are mathematics."""
_NUM_PROBLEMS = 2**31 - 1
_NUM_FOR_CHANCE = 400


class ReasoningGym(ReplyTask):
    """One of the library's generators, at its own defaults."""

    licence = "Apache-2.0"
    num_test = 256
    max_new_tokens = 48

    class Config(BaseModel):
        """Which generator, behind how many solved problems."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        subset: Subset = "chain_sum"
        num_solved: int = Field(default=2, ge=0, le=16)

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        place = SUBSETS.index(self.config.subset)
        self.category = "mathematics" if place < _NUM_MATHEMATICS else "reasoning"
        if self.config.subset == "needle_haystack":
            self.category = "long context"

    @property
    def chance(self) -> float:
        """Share of the commonest answer; nothing where answers hardly repeat, or none are here."""
        if self.missing():
            return 0.0
        answer, count = self._commonest()
        return count / _NUM_FOR_CHANCE if count > 0.02 * _NUM_FOR_CHANCE and answer else 0.0

    def guesses(self, prompt: str) -> tuple[str, ...]:
        """See `ReplyTask.guesses`."""
        del prompt
        return (self._commonest()[0],) if self.chance else ()

    def missing(self) -> str:
        """See `Evaluation.missing`."""
        found = _found_version()
        if found == VERSION:
            return ""
        other = f"{PACKAGE} {found} is here and {VERSION} is asked for"
        reason = other if found else f"{PACKAGE} is not here"
        return f"{reason}; run: pip install {PACKAGE}=={VERSION}"

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        """See `ReplyTask.questions`."""
        return solved(self._draw, split, seed, num_examples, self.config.num_solved)

    def _draw(self, rng: np.random.Generator) -> Question:
        problem = _problems(self.config.subset)[int(rng.integers(_NUM_PROBLEMS))]
        return Question(f"{problem['question'].strip()}\nAnswer:", (str(problem["answer"]),))

    def _commonest(self) -> tuple[str, int]:
        """The commonest answer of training problems, and how often it stands there."""
        return _commonest_of(self.config.subset)


@functools.cache
def _problems(subset: Subset) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(subset, size=_NUM_PROBLEMS, seed=0)


@functools.cache
def _commonest_of(subset: Subset) -> tuple[str, int]:
    task = ReasoningGym(ReasoningGym.Config(subset=subset))
    found = drawn(task._draw, "train", 0, _NUM_FOR_CHANCE)
    return Counter(question.answers[0] for question in found).most_common(1)[0]


def _found_version() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return ""
