"""In-context recall: key-value pairs, and the value again wherever a key returns.

MAD's protocol (arXiv 2403.17844): keys are the first half of the vocabulary, values the second;
each example has a key-to-value map of its own; the last pair is always one already shown. Training
predicts every next token, as MAD does, unless `train_on` says answers; tests ask for the values of
returning keys.

Shape suffixes: N examples, T time.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from archloop.evals.base import MAX_SIZE, Examples, Split, Task, TaskConfig
from archloop.evals.generation import draw_split
from archloop.evals.recall import recall_rows


class InContextRecall(Task):
    """Recall of values by key within one sequence."""

    category = "recall"

    class Config(TaskConfig):
        """MAD's default setting; `num_train` is the size of its training set."""

        vocab_size: int = Field(default=16, ge=4, le=MAX_SIZE)
        seq_len: int = Field(default=128, ge=4, le=MAX_SIZE, multiple_of=2)
        num_train: int = Field(default=12_800, ge=1)
        train_on: Literal["all", "answers"] = "all"

    config: Config

    @property
    def chance(self) -> float:
        """Any value, each as likely."""
        num_keys = self.config.vocab_size // 2
        return 1 / (self.config.vocab_size - num_keys)

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        def draw(rng: np.random.Generator, num: int) -> Examples:
            return recall_rows(
                rng,
                num,
                num_tokens=self.config.vocab_size,
                num_pairs=self.config.seq_len // 2,
                predict_all=split == "train" and self.config.train_on == "all",
            )

        return draw_split(draw, split, seed, num_examples)
