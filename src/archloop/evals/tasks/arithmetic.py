"""Arithmetic: one line of one variant, with its result to be written.

Variants: differences, products, remainders, comparisons, the next term of a sequence, and chains of
two operations; sums have a file of their own, `addition`.
"""

import re
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.questions import solved
from archloop.evals.text_tasks import Question, ReplyTask

Variant = Literal["difference", "product", "remainder", "comparison", "sequence", "chain"]

_NUM_DIVISORS = 11
"""Remainders are asked by as many numbers, from 2 on."""


class Arithmetic(ReplyTask):
    """Whole numbers, one operation a question, or two in a chain."""

    version = 3
    category = "mathematics"
    max_new_tokens = 12

    class Config(BaseModel):
        """What is asked, with numbers of how many digits, behind how many solved lines."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        variant: Variant = "difference"
        num_digits: int = Field(default=2, ge=1, le=6)
        num_solved: int = Field(default=4, ge=0, le=32)

    config: Config

    @property
    def chance(self) -> float:
        """Of a comparison, both answers stand in the question; of remainders by numbers from 2
        to 12 one in five is 1; other results are not guessed.
        """
        if self.config.variant == "remainder":
            return self._share_of_ones()
        return 0.5 if self.config.variant == "comparison" else 0.0

    def guesses(self, prompt: str) -> tuple[str, ...]:
        """See `ReplyTask.guesses`."""
        if self.config.variant == "remainder":
            return ("1",)
        return tuple(re.findall(r"\d+", prompt)[-2:]) if self.config.variant == "comparison" else ()

    def _share_of_ones(self) -> float:
        """Share of remainders that are 1, the commonest, over all that `_draw` may draw."""
        most: int = 10**self.config.num_digits - 1
        found = 0
        for rest in range(_NUM_DIVISORS):
            # Of the numbers from 1 to `most`, those whose remainder chooses this divisor, and those
            # that leave 1 when they are divided by it.
            chosen = most // _NUM_DIVISORS if rest == 0 else (most - rest) // _NUM_DIVISORS + 1
            found += chosen * ((most - 1) // (rest + 2) + 1)
        return found / most**2

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        return solved(self._draw, split, seed, num_examples, self.config.num_solved)

    def _draw(self, rng: np.random.Generator) -> Question:
        top = 10**self.config.num_digits
        a, b, c = (int(n) for n in rng.integers(1, top, size=3))
        if self.config.variant == "difference":
            return Question(f"{a} - {b} =", (str(a - b),))
        if self.config.variant == "product":
            return Question(f"{a} * {b} =", (str(a * b),))
        if self.config.variant == "remainder":
            small = c % _NUM_DIVISORS + 2
            return Question(f"{a} mod {small} =", (str(a % small),))
        if self.config.variant == "comparison":
            # Equal numbers have no larger one.
            b += a == b
            return Question(f"The larger of {a} and {b} is", (str(max(a, b)),))
        if self.config.variant == "chain":
            return Question(f"{a} + {b} - {c} =", (str(a + b - c),))
        terms = [a + step * b for step in range(5)]
        return Question(", ".join(map(str, terms[:4])) + ",", (str(terms[4]),))
