"""Selective copying: repeat, in order, the tokens that stood among blanks.

MAD's protocol (arXiv 2403.17844): ``tokens with blanks strewn between, the copy token, k blanks``,
where the k last blanks are to be answered with the k tokens. No blank stands between the last token
and the copy token. The vocabulary ends with the blank and the copy token.

Shape suffixes: N examples, T time, C tokens to copy, I inserted blanks.
"""

import numpy as np
from pydantic import Field, model_validator

from archloop.evals.base import IGNORE, MAX_SIZE, Examples, Split, Task, TaskConfig
from archloop.evals.generation import draw_split


class SelectiveCopying(Task):
    """Selection by content, and order."""

    category = "copying"

    class Config(TaskConfig):
        """MAD's default setting."""

        vocab_size: int = Field(default=16, ge=4, le=MAX_SIZE)
        seq_len: int = Field(default=256, ge=5, le=MAX_SIZE)
        num_to_copy: int = Field(default=16, ge=1)
        num_train: int = Field(default=12_800, ge=1)

        @model_validator(mode="after")
        def _check_length(self) -> "SelectiveCopying.Config":
            least = 2 * self.num_to_copy + 2
            if self.seq_len < least:
                raise ValueError(
                    f"seq_len={self.seq_len} is too short for num_to_copy={self.num_to_copy}; "
                    f"give at least {least}"
                )
            return self

    config: Config

    @property
    def chance(self) -> float:
        """Any token that can be copied, each as likely."""
        return 1 / (self.config.vocab_size - 2)

    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        return draw_split(self._draw, split, seed, num_examples)

    def _draw(self, rng: np.random.Generator, num: int) -> Examples:
        num_to_copy, seq_len = self.config.num_to_copy, self.config.seq_len
        copy, blank = self.config.vocab_size - 1, self.config.vocab_size - 2
        num_blanks = seq_len - 2 * num_to_copy - 1
        tokens_NC = rng.integers(blank, size=(num, num_to_copy))
        # Each blank goes before one of the tokens; a token stands after all before it.
        before_NI = rng.integers(num_to_copy, size=(num, num_blanks))
        counts_NC = (before_NI[:, :, None] == np.arange(num_to_copy)).sum(1)
        places_NC = np.arange(num_to_copy) + counts_NC.cumsum(1)
        ids_NT = np.full((num, seq_len), blank)
        np.put_along_axis(ids_NT, places_NC, tokens_NC, 1)
        ids_NT[:, seq_len - num_to_copy - 1] = copy
        targets_NT = np.full_like(ids_NT, IGNORE)
        targets_NT[:, -num_to_copy:] = tokens_NC
        return Examples(ids_NT, targets_NT)
