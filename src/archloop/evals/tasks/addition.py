"""Addition: the model writes the sum of two numbers after solved examples.

Problems belong to a split by their pair of numbers, so that no test problem is shown in training.
The prompt holds solved problems of the training split before the one that is asked.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.generation import generator
from archloop.evals.text_tasks import Question, ReplyTask

_TEST_SHARE = 8
"""One pair of numbers in this many is for testing."""


class Addition(ReplyTask):
    """Sums of whole numbers."""

    category = "mathematics"
    max_new_tokens = 12

    class Config(BaseModel):
        """Size of the numbers, and how many solved problems come first."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        num_digits: int = Field(default=2, ge=1, le=8)
        num_solved: int = Field(default=4, ge=0, le=32)

    config: Config

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        rng = generator(split, seed)
        found = []
        for _ in range(num_examples):
            solved = [self._problem(rng, "train") for _ in range(self.config.num_solved)]
            left, right = self._problem(rng, split)
            lines = [f"{a} + {b} = {a + b}\n" for a, b in solved]
            found.append(Question("".join(lines) + f"{left} + {right} =", (str(left + right),)))
        return found

    def _problem(self, rng: np.random.Generator, split: Split) -> tuple[int, int]:
        while True:
            left, right = (int(n) for n in rng.integers(10**self.config.num_digits, size=2))
            if ((left * 31 + right * 17) % _TEST_SHARE == 0) == (split == "test"):
                return left, right
