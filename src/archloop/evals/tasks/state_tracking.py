"""State tracking: the product of all group elements so far, asked after each of them.

The running product of a group's elements is what a recurrence can carry and a bounded number of
attention layers cannot at every length (arXiv 2404.08819): parity (Z2) and the counter modulo 5
(Z5) need eigenvalues off the positive reals, S3 and S5 do not commute, and S5 needs depth that
grows with the length. Which linear recurrences can is settled by their eigenvalues (arXiv
2411.12537). Answers have ids of their own, and only the second half of a row is asked, so that
short prefixes do not pay.

Shape suffixes: N examples, T time, G group elements.
"""

from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from archloop.evals.base import IGNORE, MAX_SIZE, Examples, Split, Task, TaskConfig
from archloop.evals.generation import draw_split

Group = Literal["parity", "mod5", "s3", "s5"]


class StateTracking(Task):
    """Running products in a finite group."""

    category = "state"

    class Config(TaskConfig):
        """The vocabulary is the group's elements, then as many answers."""

        group: Group = "s3"
        seq_len: int = Field(default=128, ge=8, le=MAX_SIZE)
        vocab_size: int = Field(default=0, ge=0)
        num_train: int = Field(default=100_000, ge=1)

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._table_GG = table(self.config.group)

    @property
    def vocab_size(self) -> int:
        return 2 * len(self._table_GG)

    @property
    def chance(self) -> float:
        """Any element, each as likely: a product with a uniform element is uniform."""
        return 1 / len(self._table_GG)

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        return draw_split(self._draw, split, seed, num_examples)

    def _draw(self, rng: np.random.Generator, num: int) -> Examples:
        size, length = len(self._table_GG), self.config.seq_len
        ids_NT = rng.integers(size, size=(num, length))
        answers_NT = np.full_like(ids_NT, IGNORE)
        product_N = np.zeros(num, dtype=np.int64)
        for place in range(length):
            product_N = self._table_GG[product_N, ids_NT[:, place]]
            if place >= length // 2:
                answers_NT[:, place] = product_N + size
        return Examples(ids_NT, answers_NT)


def table(group: Group) -> NDArray[np.int64]:
    """A group's multiplication table, (G, G); element 0 is the neutral one."""
    if group in ("parity", "mod5"):
        order = 2 if group == "parity" else 5
        sums_GG: NDArray[np.int64] = (np.arange(order)[:, None] + np.arange(order)) % order
        return sums_GG
    elements = list(permutations(range(3 if group == "s3" else 5)))
    numbers = {element: number for number, element in enumerate(elements)}
    return np.array(
        [[numbers[tuple(right[i] for i in left)] for right in elements] for left in elements]
    )
