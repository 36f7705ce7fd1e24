"""MQAR as its authors draw it: pairs of key and value first, then each key again after a gap.

Multi-query associative recall (arXiv 2312.04927, appendix E; zoology's ``multiquery_ar``). The keys
of a row are different from each other and so are its values; where a key is asked is drawn by a
power law that favours places close behind the pairs, and between the asked keys stands token 0. A
row's score is the share of its keys whose value was predicted.

Shape suffixes: N examples, P pairs, T time, G places where a key may be asked.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from archloop.evals.base import IGNORE, MAX_SIZE, Examples, Split, Task, TaskConfig
from archloop.evals.generation import draw_split, repeats


class MQAR(Task):
    """Recall of values by key, asked at places that follow a power law."""

    category = "recall"

    class Config(TaskConfig):
        """The settings of the paper's figure 2 are (64, 4), (128, 8), (256, 16), (512, 64)."""

        vocab_size: int = Field(default=8192, ge=8, le=MAX_SIZE)
        seq_len: int = Field(default=64, ge=8, le=MAX_SIZE)
        num_pairs: int = Field(default=4, ge=1, le=MAX_SIZE)
        power: float = Field(default=0.01, gt=0)
        num_train: int = Field(default=100_000, ge=1)

        @model_validator(mode="after")
        def _check_sizes(self) -> Self:
            if self.seq_len < 4 * self.num_pairs:
                raise ValueError(
                    f"seq_len={self.seq_len} has no room for {self.num_pairs} pairs, each shown "
                    f"and asked; give at least {4 * self.num_pairs}"
                )
            if self.num_pairs >= self.vocab_size // 2:
                raise ValueError(
                    f"vocab_size={self.vocab_size} has {self.vocab_size // 2 - 1} keys, too few "
                    f"for {self.num_pairs} pairs; make it larger"
                )
            return self

    config: Config

    @property
    def chance(self) -> float:
        """Any value of the vocabulary, each as likely."""
        return 1 / (self.vocab_size - self.vocab_size // 2)

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        return draw_split(self._draw, split, seed, num_examples)

    def _draw(self, rng: np.random.Generator, num: int) -> Examples:
        settings = self.config
        num_pairs, half = settings.num_pairs, self.vocab_size // 2
        keys_NP = _distinct(rng, (num, num_pairs), 1, half)
        values_NP = _distinct(rng, (num, num_pairs), half, self.vocab_size)
        ids_NT = np.zeros((num, settings.seq_len), dtype=np.int64)
        ids_NT[:, : 2 * num_pairs : 2] = keys_NP
        ids_NT[:, 1 : 2 * num_pairs : 2] = values_NP
        places_NP = 2 * num_pairs + 2 * self._gaps(rng, num)
        np.put_along_axis(ids_NT, places_NP, keys_NP, axis=1)
        targets_NT = np.full_like(ids_NT, IGNORE)
        np.put_along_axis(targets_NT, places_NP, values_NP, axis=1)
        return Examples(ids_NT, targets_NT)

    def _gaps(self, rng: np.random.Generator, num: int) -> NDArray[np.int64]:
        """Different places for the keys of each row, (N, P), counted in pairs of tokens."""
        settings = self.config
        num_places = (settings.seq_len - 2 * settings.num_pairs) // 2
        logs_G = (settings.power - 1) * np.log(np.arange(1, num_places + 1))
        # The largest sums of logarithms and Gumbel noise are a draw without replacement by these
        # weights (arXiv 1903.06059).
        noisy_NG = logs_G + rng.gumbel(size=(num, num_places))
        gaps_NP: NDArray[np.int64] = np.argsort(-noisy_NG, axis=1)[:, : settings.num_pairs]
        return gaps_NP


def _distinct(
    rng: np.random.Generator, shape: tuple[int, int], first: int, end: int
) -> NDArray[np.int64]:
    """Whole numbers from `first` below `end`, those of a row different from each other."""
    found_NP = rng.integers(first, end, size=shape)
    # Every number is treated alike, so redrawing those that stand in the row already leaves all
    # rows without a repetition equally likely.
    while (again_NP := repeats(found_NP)).any():
        found_NP[again_NP] = rng.integers(first, end, size=int(again_NP.sum()))
    return found_NP
