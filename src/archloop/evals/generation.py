"""Drawing examples: rows belong to a split by their own content, so that splits never overlap.

A task draws rows freely; each row's hash says whether it may be used for training or for testing,
and the draw is repeated until enough rows of the asked split are there. Whatever the seeds, no test
row is ever trained on.

Shape suffixes: N examples, T time.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UserError
from archloop.evals.base import Examples, Split

TEST_SHARE_BITS = 3
"""One row in 2^3 belongs to the test split."""

Draw = Callable[[np.random.Generator, int], Examples]
"""Draws any number of rows."""

_SPLIT_IDS = {"train": 0, "test": 1}


def generator(split: Split, seed: int) -> np.random.Generator:
    """The random numbers of a split and seed."""
    return np.random.default_rng([_SPLIT_IDS[split], seed])


def draw_split(draw: Draw, split: Split, seed: int, num_examples: int) -> Examples:
    """Rows of one split, a pure function of the arguments.

    Raises:
        UserError: the task has too few different rows to fill the split.
    """
    rng = generator(split, seed)
    share = 2.0**-TEST_SHARE_BITS if split == "test" else 1 - 2.0**-TEST_SHARE_BITS
    parts: list[Examples] = []
    missing = num_examples
    for _ in range(100):
        drawn = draw(rng, int(missing / share * 1.1) + 8)
        mine = np.flatnonzero(is_test(drawn.ids_NT) == (split == "test"))[:missing]
        parts.append(Examples(drawn.ids_NT[mine], drawn.targets_NT[mine]))
        missing -= len(mine)
        if missing == 0:
            return Examples(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    raise UserError(
        f"the task has too few different examples to fill its {split} split; make its vocabulary "
        "or length larger"
    )


def is_test(ids_NT: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows belong to the test split, by a hash of their token ids, (N,)."""
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    powers_T = np.cumprod(np.full(ids_NT.shape[1], multiplier), dtype=np.uint64)
    hash_N = ((ids_NT.astype(np.uint64) + np.uint64(1)) * powers_T).sum(1, dtype=np.uint64)
    hash_N ^= hash_N >> np.uint64(31)
    hash_N *= np.uint64(0xBF58476D1CE4E5B9)
    mine_N: NDArray[np.bool_] = (hash_N >> np.uint64(64 - TEST_SHARE_BITS)) == 0
    return mine_N


def shift(ids_NT: NDArray[np.int64], answers_NT: NDArray[np.int64]) -> Examples:
    """Inputs without the last token, and the answers that come one token later."""
    return Examples(ids_NT[:, :-1], answers_NT[:, 1:])


def repeats(keys_NP: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a row holds the same value at an earlier place, (N, P)."""
    order_NP = np.argsort(keys_NP, axis=1, kind="stable")
    sorted_NP = np.take_along_axis(keys_NP, order_NP, 1)
    again_NP = np.zeros(keys_NP.shape, dtype=bool)
    again_NP[:, 1:] = sorted_NP[:, 1:] == sorted_NP[:, :-1]
    out_NP = np.zeros_like(again_NP)
    np.put_along_axis(out_NP, order_NP, again_NP, 1)
    return out_NP
