"""Memorization: a fixed map from keys to values, learnt in the weights.

MAD's protocol (arXiv 2403.17844): ``key, insert token, key, insert token, ...``; at each insert
token the key's value is asked. Values never appear in the input. Train and test share the map, by
design, which is drawn once from `map_seed`.

Shape suffixes: N examples, T time, P pairs.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from archloop.evals.base import IGNORE, MAX_SIZE, Examples, Split, Task, TaskConfig
from archloop.evals.generation import generator


class Memorization(Task):
    """Facts in the weights."""

    category = "memory"
    shares_examples: ClassVar[bool] = True

    class Config(TaskConfig):
        """MAD's default setting."""

        vocab_size: int = Field(default=256, ge=4, le=MAX_SIZE)
        seq_len: int = Field(default=32, ge=2, le=MAX_SIZE, multiple_of=2)
        num_train: int = Field(default=256, ge=1)
        map_seed: int = Field(default=12345, ge=0)

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.num_keys = (self.config.vocab_size - 1) // 2
        self.num_values = self.config.vocab_size - 1 - self.num_keys
        values = np.arange(self.num_keys, self.config.vocab_size - 1)
        rng = np.random.default_rng(self.config.map_seed)
        self.value_of_key = rng.permutation(values)[: self.num_keys]

    @property
    def chance(self) -> float:
        """Any value, each as likely."""
        return 1 / self.num_values

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        rng = generator(split, seed)
        keys_NP = rng.integers(self.num_keys, size=(num_examples, self.config.seq_len // 2))
        ids_NT = np.full((num_examples, self.config.seq_len), self.config.vocab_size - 1)
        targets_NT = np.full_like(ids_NT, IGNORE)
        ids_NT[:, ::2] = keys_NP
        targets_NT[:, 1::2] = self.value_of_key[keys_NP]
        return Examples(ids_NT, targets_NT)
