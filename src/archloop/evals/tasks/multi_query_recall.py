"""Multi-query recall in bits: pairs of key and value, filler, then each key once more.

After MQAR (arXiv 2312.04927), made so that neither local mixing nor counting solves it: the keys
are asked after all pairs were shown, in an order of their own, each once, so that a window of a
quarter of the row reaches few of the answers; and knowing which values the row holds, but not
whose they are, leaves log2 of their number in bits. Scored in bits per answer, since accuracy
jumps where bits fall steadily. A test row holds `num_pairs` pairs. Training rows hold a power of
two of them, from 4 on, each number as likely, because learning starts with few; filler takes the
place of the rest.

Shape suffixes: N examples, P pairs, T time, V values.
"""

from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from archloop.evals.base import IGNORE, MAX_SIZE, Examples, Split, TaskConfig, TaskInBits
from archloop.evals.generation import draw_split

_FEWEST_PAIRS = 4
_CHANCE_ROWS = 4096


class MultiQueryRecall(TaskInBits):
    """Recall of many values by key within one sequence."""

    category = "recall"

    class Config(TaskConfig):
        """The vocabulary is keys, then values, then one filler token."""

        num_keys: int = Field(default=128, ge=4, le=MAX_SIZE)
        num_values: int = Field(default=64, ge=2, le=MAX_SIZE)
        num_pairs: int = Field(default=64, ge=4, le=MAX_SIZE)
        seq_len: int = Field(default=256, ge=16, le=MAX_SIZE)
        vocab_size: int = Field(default=0, ge=0)
        num_train: int = Field(default=100_000, ge=1)

        @model_validator(mode="after")
        def _check_sizes(self) -> Self:
            if self.num_pairs > self.num_keys:
                raise ValueError(
                    f"num_keys={self.num_keys} is fewer than num_pairs={self.num_pairs}, and each "
                    "key stands in one pair; make it larger"
                )
            if self.seq_len < 4 * self.num_pairs:
                raise ValueError(
                    f"seq_len={self.seq_len} has no room for {self.num_pairs} pairs, each shown "
                    f"and asked; give at least {4 * self.num_pairs}"
                )
            if self.vocab_size not in (0, self.num_tokens):
                raise ValueError(f"is {self.num_tokens} by the other settings; leave it out")
            return self

        @property
        def num_tokens(self) -> int:
            """Keys, values and the filler."""
            return self.num_keys + self.num_values + 1

    config: Config

    @property
    def vocab_size(self) -> int:
        return self.config.num_tokens

    @cached_property
    def chance(self) -> float:
        """Bits of answering by the values that the row has shown, each as often as it stands."""
        values_NP = np.random.default_rng(0).integers(
            self.config.num_values, size=(_CHANCE_ROWS, self.config.num_pairs)
        )
        return float(np.log2(self.config.num_pairs / _counts(values_NP)).mean())

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        def draw(rng: np.random.Generator, num: int) -> Examples:
            return self._draw(rng, num, split)

        return draw_split(draw, split, seed, num_examples)

    def _draw(self, rng: np.random.Generator, num: int, split: Split) -> Examples:
        settings = self.config
        num_pairs = settings.num_pairs
        keys_NP = _distinct(rng, num, settings.num_keys, num_pairs)
        values_NP = rng.integers(settings.num_values, size=keys_NP.shape) + settings.num_keys
        shown_NP = np.arange(num_pairs) < self._num_shown(rng, num, split)[:, None]
        filler = settings.num_tokens - 1
        ids_NT = np.full((num, settings.seq_len + 1), filler)
        _place(ids_NT[:, : 2 * num_pairs], keys_NP, values_NP, shown_NP)
        # Asked in an order of its own, those that were shown first.
        order_NP = np.argsort(np.where(shown_NP, rng.random(keys_NP.shape), 2.0), axis=1)
        keys_NP = np.take_along_axis(keys_NP, order_NP, 1)
        values_NP = np.take_along_axis(values_NP, order_NP, 1)
        shown_NP = np.take_along_axis(shown_NP, order_NP, 1)
        start = settings.seq_len + 1 - 2 * num_pairs
        _place(ids_NT[:, start:], keys_NP, values_NP, shown_NP)
        answers_NT = np.full_like(ids_NT, IGNORE)
        answers_NT[:, start + 1 :: 2] = np.where(shown_NP, values_NP, IGNORE)
        return Examples(ids_NT[:, :-1], answers_NT[:, 1:])

    def _num_shown(self, rng: np.random.Generator, num: int, split: Split) -> NDArray[np.int64]:
        """Pairs of each row, (N,)."""
        if split == "test":
            return np.full(num, self.config.num_pairs)
        sizes = [_FEWEST_PAIRS]
        while sizes[-1] * 2 <= self.config.num_pairs:
            sizes.append(sizes[-1] * 2)
        if sizes[-1] != self.config.num_pairs:
            sizes.append(self.config.num_pairs)
        return np.array(sizes)[rng.integers(len(sizes), size=num)]


def _place(
    ids_NT: NDArray[np.int64],
    keys_NP: NDArray[np.int64],
    values_NP: NDArray[np.int64],
    shown_NP: NDArray[np.bool_],
) -> None:
    """Write the shown pairs behind each other, into rows that hold filler so far."""
    ids_NT[:, ::2] = np.where(shown_NP, keys_NP, ids_NT[:, ::2])
    ids_NT[:, 1::2] = np.where(shown_NP, values_NP, ids_NT[:, 1::2])


def _distinct(rng: np.random.Generator, num: int, num_keys: int, size: int) -> NDArray[np.int64]:
    """Different keys in each row, in any order, (N, P)."""
    return np.argsort(rng.random((num, num_keys)), axis=1)[:, :size]


def _counts(values_NP: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each row holds the value at each place, (N, P), in memory of the rows' size."""
    counts_NP = np.empty_like(values_NP)
    for row, values_P in enumerate(values_NP):
        counts_NP[row] = np.bincount(values_P)[values_P]
    return counts_NP
