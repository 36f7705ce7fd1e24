"""Compression: the last position must hold the whole sequence, decoded by a head of its own.

MAD's protocol (arXiv 2403.17844): random tokens, then a compression token. The decoder's output at
that token, plus a position, goes through a small network that predicts each token of the sequence,
so the task cannot be mixed with next-token training. Its targets stand at the tokens themselves;
the last, the compression token, is always the same.

Shape suffixes: N examples, T time.
"""

import numpy as np
from pydantic import Field

from archloop.evals.base import MAX_SIZE, Examples, Split, Task, TaskConfig
from archloop.evals.generation import draw_split


class Compression(Task):
    """Capacity of the state at one position."""

    category = "compression"
    in_mixture = False
    head = "auto_encoder"
    loss = "reconstruction"

    class Config(TaskConfig):
        """MAD's default setting."""

        vocab_size: int = Field(default=16, ge=3, le=MAX_SIZE)
        seq_len: int = Field(default=32, ge=2, le=MAX_SIZE)
        num_train: int = Field(default=12_800, ge=1)

    config: Config

    @property
    def chance(self) -> float:
        """The compression token always, the others by guessing."""
        guessed = (self.config.seq_len - 1) / (self.config.vocab_size - 1)
        return (guessed + 1) / self.config.seq_len

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        return draw_split(self._draw, split, seed, num_examples)

    def _draw(self, rng: np.random.Generator, num: int) -> Examples:
        last = self.config.vocab_size - 1
        ids_NT = rng.integers(last, size=(num, self.config.seq_len))
        ids_NT[:, -1] = last
        return Examples(ids_NT, ids_NT.copy())
