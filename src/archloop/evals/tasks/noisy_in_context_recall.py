"""Noisy in-context recall: as in-context recall, with pairs of noise tokens in between.

MAD's protocol (arXiv 2403.17844): the noise tokens have ids of their own at the end of the
vocabulary and never ask anything.

Shape suffixes: N examples, T time.
"""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from archloop.evals.base import MAX_SIZE, Examples, Split, Task, TaskConfig
from archloop.evals.generation import draw_split
from archloop.evals.recall import recall_rows


class NoisyInContextRecall(Task):
    """Recall of values by key among noise."""

    category = "recall"

    class Config(TaskConfig):
        """MAD's default setting: 16 of the 32 tokens are noise."""

        vocab_size: int = Field(default=32, ge=5, le=MAX_SIZE)
        noise_vocab_size: int = Field(default=16, ge=1, le=MAX_SIZE)
        noise_share: float = Field(default=0.2, ge=0, lt=1)
        seq_len: int = Field(default=128, ge=4, le=MAX_SIZE, multiple_of=2)
        num_train: int = Field(default=12_800, ge=1)
        train_on: Literal["all", "answers"] = "all"

        @model_validator(mode="after")
        def _check_vocab(self) -> "NoisyInContextRecall.Config":
            if self.vocab_size - self.noise_vocab_size < 4:
                raise ValueError(
                    f"noise_vocab_size={self.noise_vocab_size} leaves fewer than 4 of "
                    f"vocab_size={self.vocab_size} tokens for keys and values; make it smaller"
                )
            return self

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._num_tokens = self.config.vocab_size - self.config.noise_vocab_size

    @property
    def chance(self) -> float:
        """Any value, each as likely."""
        return 1 / (self._num_tokens - self._num_tokens // 2)

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        def draw(rng: np.random.Generator, num: int) -> Examples:
            return recall_rows(
                rng,
                num,
                num_tokens=self._num_tokens,
                num_pairs=self.config.seq_len // 2,
                predict_all=split == "train" and self.config.train_on == "all",
                num_noise_tokens=self.config.noise_vocab_size,
                noise_share=self.config.noise_share,
            )

        return draw_split(draw, split, seed, num_examples)
