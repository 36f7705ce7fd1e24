"""Fuzzy in-context recall: keys and values are motifs of one to three tokens.

MAD's protocol (arXiv 2403.17844): a motif has no repeated token; tests ask with keys of the largest
size alone; rows are padded on the left; the last pair repeats a probe pair that was put in at a
random place. MAD can place the probe too late to be shown at all; here it always is. Motifs are
drawn, not listed: there are 238,266 of three tokens at a vocabulary of 128.

Shape suffixes: N examples, T time, M tokens of a motif, S pairs so far.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from archloop.evals.base import IGNORE, MAX_SIZE, Examples, Split, Task, TaskConfig
from archloop.evals.generation import draw_split, shift

Ints = NDArray[np.int64]


class FuzzyInContextRecall(Task):
    """Recall of motifs by motifs within one sequence."""

    category = "recall"

    class Config(TaskConfig):
        """MAD's default setting; the last token of the vocabulary pads."""

        vocab_size: int = Field(default=16, ge=5, le=MAX_SIZE)
        seq_len: int = Field(default=128, ge=8, le=MAX_SIZE)
        key_motif_size: int = Field(default=3, ge=1)
        value_motif_size: int = Field(default=3, ge=1)
        num_train: int = Field(default=12_800, ge=1)
        train_on: Literal["all", "answers"] = "all"

        @model_validator(mode="after")
        def _check_sizes(self) -> "FuzzyInContextRecall.Config":
            num_keys = (self.vocab_size - 1) // 2
            if self.key_motif_size > num_keys or self.value_motif_size > num_keys:
                raise ValueError(
                    f"vocab_size={self.vocab_size} has {num_keys} key tokens, too few for motifs "
                    f"of {self.key_motif_size} and {self.value_motif_size}; make it larger"
                )
            least = 4 * (self.key_motif_size + self.value_motif_size)
            if self.seq_len < least:
                raise ValueError(
                    f"seq_len={self.seq_len} has no room for a pair and its repetition; "
                    f"give at least {least}"
                )
            return self

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.num_keys = (self.config.vocab_size - 1) // 2
        self.num_values = self.config.vocab_size - 1 - self.num_keys

    @property
    def chance(self) -> float:
        """Any token of the values, each as likely."""
        return 1 / self.num_values

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        def draw(rng: np.random.Generator, num: int) -> Examples:
            return self._draw(rng, num, split)

        return draw_split(draw, split, seed, num_examples)

    def _draw(self, rng: np.random.Generator, num: int, split: Split) -> Examples:
        rows = _Rows(num, self.config.seq_len + 1)
        probe = self._pairs(rng, num, split)
        limit_N = self.config.seq_len - probe.lengths_N - self._longest
        place_N = rng.integers(limit_N - self._longest + 1)
        added_N = np.zeros(num, dtype=bool)
        history = _History(num)
        while (active_N := rows.ends_N < limit_N).any():
            pairs = self._pairs(rng, num, split)
            put_N = ~added_N & (rows.ends_N >= place_N)
            pairs = pairs.replaced(put_N | (pairs.codes_N == probe.codes_N), probe)
            pairs, seen_N = history.look_up(pairs)
            history.add(pairs, active_N)
            added_N |= active_N & (pairs.codes_N == probe.codes_N)
            rows.append(pairs.keys_NM, active_N, asked_N=None)
            rows.append(pairs.values_NM, active_N, asked_N=seen_N)
        everywhere_N = np.ones(num, dtype=bool)
        rows.append(probe.keys_NM, everywhere_N, asked_N=None)
        rows.append(probe.values_NM, everywhere_N, asked_N=everywhere_N)
        ids_NT, answers_NT = rows.right_aligned(pad=self.config.vocab_size - 1)
        predict_all = split == "train" and self.config.train_on == "all"
        return shift(ids_NT, ids_NT if predict_all else answers_NT)

    @property
    def _longest(self) -> int:
        return self.config.key_motif_size + self.config.value_motif_size

    def _pairs(self, rng: np.random.Generator, num: int, split: Split) -> "_Pairs":
        size = self.config.key_motif_size
        keys_NM = _motifs(rng, num, self.num_keys, size, full=split == "test")
        values_NM = _motifs(rng, num, self.num_values, self.config.value_motif_size, full=False)
        values_NM = np.where(values_NM < 0, -1, values_NM + self.num_keys)
        codes_N = ((keys_NM + 1) * (self.num_keys + 1) ** np.arange(size)).sum(1)
        return _Pairs(keys_NM, values_NM, codes_N)


class _Pairs(NamedTuple):
    """A key and a value for each row, -1 where a motif has no further token."""

    keys_NM: Ints
    values_NM: Ints
    codes_N: Ints

    @property
    def lengths_N(self) -> Ints:
        lengths_N: Ints = (self.keys_NM >= 0).sum(1) + (self.values_NM >= 0).sum(1)
        return lengths_N

    def replaced(self, where_N: NDArray[np.bool_], other: "_Pairs") -> "_Pairs":
        return _Pairs(
            np.where(where_N[:, None], other.keys_NM, self.keys_NM),
            np.where(where_N[:, None], other.values_NM, self.values_NM),
            np.where(where_N, other.codes_N, self.codes_N),
        )


class _History:
    """Which keys each row has shown, and with which values."""

    def __init__(self, num: int) -> None:
        self._rows_N = np.arange(num)
        self._codes: list[Ints] = []
        self._values: list[Ints] = []

    def look_up(self, pairs: _Pairs) -> tuple[_Pairs, NDArray[np.bool_]]:
        """The pairs with the values already shown for their keys, and where there were any."""
        if not self._codes:
            return pairs, np.zeros(len(pairs.codes_N), dtype=bool)
        same_SN = np.stack(self._codes) == pairs.codes_N
        seen_N = same_SN.any(0)
        shown_NM = np.stack(self._values)[same_SN.argmax(0), self._rows_N]
        values_NM = np.where(seen_N[:, None], shown_NM, pairs.values_NM)
        return pairs._replace(values_NM=values_NM), seen_N

    def add(self, pairs: _Pairs, active_N: NDArray[np.bool_]) -> None:
        self._codes.append(np.where(active_N, pairs.codes_N, -1))
        self._values.append(pairs.values_NM)


class _Rows:
    """Token rows that grow at their ends, with answers where something is asked."""

    def __init__(self, num: int, capacity: int) -> None:
        self._ids_NT = np.full((num, capacity), -1)
        self._answers_NT = np.full((num, capacity), IGNORE)
        self.ends_N = np.zeros(num, dtype=np.int64)

    def append(
        self, motif_NM: Ints, active_N: NDArray[np.bool_], asked_N: NDArray[np.bool_] | None
    ) -> None:
        for tokens_N in motif_NM.T:
            row = np.flatnonzero(active_N & (tokens_N >= 0))
            self._ids_NT[row, self.ends_N[row]] = tokens_N[row]
            if asked_N is not None:
                answers = np.where(asked_N[row], tokens_N[row], IGNORE)
                self._answers_NT[row, self.ends_N[row]] = answers
            self.ends_N[row] += 1

    def right_aligned(self, pad: int) -> tuple[Ints, Ints]:
        """Ids and answers, padded on the left."""
        capacity = self._ids_NT.shape[1]
        from_NT = np.arange(capacity) - (capacity - self.ends_N)[:, None]
        is_pad_NT = from_NT < 0
        from_NT = np.maximum(from_NT, 0)
        ids_NT = np.take_along_axis(self._ids_NT, from_NT, 1)
        answers_NT = np.take_along_axis(self._answers_NT, from_NT, 1)
        return np.where(is_pad_NT, pad, ids_NT), np.where(is_pad_NT, IGNORE, answers_NT)


def _motifs(
    rng: np.random.Generator, num: int, num_tokens: int, max_size: int, *, full: bool
) -> Ints:
    """Motifs of different tokens: each size as likely (`full`: the largest), -1 behind, (N, M)."""
    motif_NM = np.empty((num, max_size), dtype=np.int64)
    for place in range(max_size):
        # The r-th of the tokens that the motif does not hold yet.
        token_N = rng.integers(num_tokens - place, size=num)
        for earlier_N in np.sort(motif_NM[:, :place], axis=1).T:
            token_N += token_N >= earlier_N
        motif_NM[:, place] = token_N
    sizes_N = np.full(num, max_size) if full else rng.integers(1, max_size + 1, size=num)
    return np.where(np.arange(max_size) < sizes_N[:, None], motif_NM, -1)
