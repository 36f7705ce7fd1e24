"""What a training step reads, and the loss it lowers.

Shape suffixes: B batch, T time, D model width, X scored positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.linear_cross_entropy import linear_cross_entropy
from archloop.stack.decoder import Decoder

IGNORED = -100
"""Target of a position that is not scored."""

DRAWN_AHEAD = 4
"""Steps whose batches are drawn while a card computes those before."""


class Batch(NamedTuple):
    """Token ids with the token to predict at each position, or -100.

    Attributes:
        weight: of the batch's mean loss in the step's loss.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    weight: float = 1.0


Batches = Callable[[int], Sequence[Batch]]
"""Batches of a step: a pure function of the step's number."""

Loss = Callable[[Any, Batch], Tensor]
"""Mean loss of a model on a batch."""


def next_token_loss(decoder: Decoder, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over the positions that have a target."""
    hidden_BTD, targets_BT = decoder.hidden(batch.ids_BT), batch.targets_BT
    if triton_kernels.fusible(hidden_BTD):
        # How many positions are scored is known on the card only, so all have a logit here.
        divisor = decoder.spec.logits_divisor
        hidden_XD, weight_VD = hidden_BTD.flatten(0, 1), decoder.output_weight
        return linear_cross_entropy(hidden_XD, weight_VD, targets_BT.flatten(), divisor, IGNORED)
    scored_BT = targets_BT != IGNORED
    logits_XV = decoder.logits(hidden_BTD[scored_BT])
    return F.cross_entropy(logits_XV.float(), targets_BT[scored_BT])


def random_windows(
    tokens_T: NDArray[np.int32], rng: np.random.Generator, rows: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets (rows, length) each, from places drawn evenly.

    Args:
        tokens_T: the text; more than `length` tokens.
        rng: draws the places.
        rows: windows.
        length: tokens of a window that are inputs.
    """
    starts_B = rng.integers(len(tokens_T) - length, size=rows)
    windows = np.lib.stride_tricks.sliding_window_view(tokens_T, length + 1)
    rows_BT = windows[starts_B].astype(np.int64)
    return rows_BT[:, :-1], rows_BT[:, 1:]


class Ahead:
    """Batches of consecutive steps, drawn by another thread before they are asked for."""

    def __init__(self, batches: Batches, first: int, end: int) -> None:
        self._batches, self._next, self._end = batches, first, end
        self._thread = ThreadPoolExecutor(1, "batches")
        self._drawn: list[Future[Sequence[Batch]]] = []

    def take(self) -> Sequence[Batch]:
        """Those of the next step. Raises what drawing them raised."""
        while len(self._drawn) < DRAWN_AHEAD and self._next < self._end:
            self._drawn.append(self._thread.submit(self._batches, self._next))
            self._next += 1
        return self._drawn.pop(0).result()

    def close(self) -> None:
        """Draw no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
