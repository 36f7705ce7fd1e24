"""Held-out bits per byte: how well a decoder predicts text, whatever its vocabulary.

The held-out tokens are cut into windows; each window's tokens but the first are predicted from
those before them in the window. Bits over all windows are divided by the bytes of text that the
predicted tokens stand for, so that vocabularies compare. Guessing bytes costs 8 bits.

Two further scores part the predicted tokens: those that complete a pair of tokens which the window
has already shown, so that looking it up would do, and the others. The first is recall in real text
(the associative-recall hits of zoology, arXiv 2312.04927, section 3), without a task to train on.

Shape suffixes: N windows, T time, V vocabulary.
"""

import math

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UserError
from archloop.evals.base import Evaluation, Grades, Score, Split, ratio
from archloop.evals.generation import repeats
from archloop.evals.text_tasks import NoSettings
from archloop.evals.verbs import Model

CATEGORY = "text"
RECALL_CATEGORY = "recall"
ALL = "bits_per_byte"
REPEATED = "bits_per_byte_repeated"
OTHER = "bits_per_byte_other"


def windows(tokens_T: NDArray[np.integer], num_windows: int, length: int) -> NDArray[np.int64]:
    """Windows of ``length + 1`` tokens spread evenly over the text, not overlapping, (N, T+1).

    Fewer than `num_windows` where the text is short.

    Raises:
        UserError: not even two windows fit, and one has no standard error.
    """
    span = length + 1
    num = min(num_windows, len(tokens_T) // span)
    if num < 2:
        raise UserError(
            f"the held-out text has {len(tokens_T)} tokens, too few for seq_len={length}; "
            "give more text, a larger heldout_share or a smaller seq_len"
        )
    starts_N = np.arange(num) * (len(tokens_T) - span) // (num - 1)
    rows_NT: NDArray[np.int64] = tokens_T[starts_N[:, None] + np.arange(span)].astype(np.int64)
    return rows_NT


class InBits(Evaluation):
    """Compression of text, in bits per byte."""

    category = CATEGORY
    licence = "of the corpus"
    verb = "loglikelihood_rolling"

    @property
    def chance(self) -> float:
        """Guessing bytes."""
        return 8.0

    @property
    def perfect(self) -> float:
        """Nothing left to say; no model of text comes near."""
        return 0.0


class HeldoutWindows(InBits):
    """Bits per byte of windows of tokens, of the tokenizer that the model was trained with."""

    Config = NoSettings

    def __init__(self, windows_NT: NDArray[np.int64], num_bytes_V: NDArray[np.int64]) -> None:
        """An evaluation on these windows.

        Args:
            windows_NT: from `windows`.
            num_bytes_V: bytes of each token.
        """
        super().__init__()
        self._windows_NT = windows_NT
        self._num_bytes_V = num_bytes_V

    def grade(self, model: Model, split: Split, seed: int, num_examples: int) -> Grades:
        """Bits and bytes of the first windows; they are held-out text whatever the split."""
        windows_NT = self._windows_NT[:num_examples]
        bits_N = token_nats(model, windows_NT).sum(1) / math.log(2)
        return Grades(bits_N, self._num_bytes_V[windows_NT[:, 1:]].sum(1).astype(float))


def measure(model: Model, windows_NT: NDArray[np.int64], num_bytes_V: NDArray[np.int64]) -> Score:
    """Score of a model on windows of held-out text.

    Args:
        model: asked by `loglikelihood_rolling`.
        windows_NT: from `windows`.
        num_bytes_V: bytes of each text token.
    """
    return HeldoutWindows(windows_NT, num_bytes_V).run(model, limit=len(windows_NT))


def measure_parts(
    model: Model, windows_NT: NDArray[np.int64], num_bytes_V: NDArray[np.int64]
) -> dict[str, Score]:
    """As `measure`, with the scores of repeated pairs and of the others, by name."""
    return parts(token_nats(model, windows_NT) / math.log(2), windows_NT, num_bytes_V)


def parts(
    bits_NT: NDArray[np.float64],
    windows_NT: NDArray[np.int64],
    num_bytes_V: NDArray[np.int64],
) -> dict[str, Score]:
    """Scores of all predicted tokens, of those that complete a repeated pair, and of the others.

    Args:
        bits_NT: bits that each predicted token cost.
        windows_NT: the windows, one token longer.
        num_bytes_V: bytes of each text token.
    """
    bytes_NT = num_bytes_V[windows_NT[:, 1:]]
    again_NT = completes_repeated_pair(windows_NT)
    found = {
        ALL: score(bits_NT.sum(1), bytes_NT.sum(1)),
        REPEATED: score((bits_NT * again_NT).sum(1), (bytes_NT * again_NT).sum(1)),
        OTHER: score((bits_NT * ~again_NT).sum(1), (bytes_NT * ~again_NT).sum(1)),
    }
    found[REPEATED] = found[REPEATED].model_copy(update={"category": RECALL_CATEGORY})
    return found


def completes_repeated_pair(windows_NT: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which predicted tokens make, with the one before, a pair that stands earlier too, (N, T)."""
    num_ids = int(windows_NT.max()) + 1
    return repeats(windows_NT[:, :-1] * num_ids + windows_NT[:, 1:])


def token_nats(model: Model, windows_NT: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nats that each predicted token costs, (N, T)."""
    return -np.stack(model.loglikelihood_rolling(list(windows_NT)))


def score(bits_N: NDArray[np.float64], bytes_N: NDArray[np.int64]) -> Score:
    """Bits per byte with the standard error of a ratio of sums over windows.

    Args:
        bits_N: bits that each window cost, at least two.
        bytes_N: bytes of text that they stand for.

    Raises:
        UserError: they stand for no byte at all.
    """
    if not bytes_N.any():
        raise UserError("no predicted token is of this part of the text; give longer windows")
    value, error = ratio(Grades(bits_N, bytes_N.astype(float)))
    return Score(
        value=value,
        standard_error=error,
        chance=8.0,
        perfect=0.0,
        num_examples=len(bits_N),
        category=CATEGORY,
    )
