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


class Arithmetic(ReplyTask):
    """Whole numbers, one operation a question, or two in a chain."""

    version = 2
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
        """Of a comparison, both answers stand in the question; other results are not guessed."""
        return 0.5 if self.config.variant == "comparison" else 0.0

    def guesses(self, prompt: str) -> tuple[str, ...]:
        """See `ReplyTask.guesses`."""
        return tuple(re.findall(r"\d+", prompt)[-2:]) if self.config.variant == "comparison" else ()

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
            small = c % 11 + 2
            return Question(f"{a} mod {small} =", (str(a % small),))
        if self.config.variant == "comparison":
            # Equal numbers have no larger one.
            b += a == b
            return Question(f"The larger of {a} and {b} is", (str(max(a, b)),))
        if self.config.variant == "chain":
            return Question(f"{a} + {b} - {c} =", (str(a + b - c),))
        terms = [a + step * b for step in range(5)]
        return Question(", ".join(map(str, terms[:4])) + ",", (str(terms[4]),))
