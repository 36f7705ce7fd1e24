"""Scoring a decoder on a task: its best token at each asked position.

Shape suffixes: N examples, T time.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from archloop.evals.base import Examples, Score, Task
from archloop.stack.decoder import Decoder


@torch.inference_mode()
def predict(decoder: Decoder, ids_NT: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """The most likely token at every position, (N, T)."""
    device = decoder.embedding.weight.device
    rows = [
        decoder(torch.from_numpy(ids_NT[start : start + batch_size]).to(device)).argmax(-1).cpu()
        for start in range(0, len(ids_NT), batch_size)
    ]
    predictions_NT: NDArray[np.int64] = torch.cat(rows).numpy()
    return predictions_NT


def measure(
    decoder: Decoder, task: Task, examples: Examples, batch_size: int, *, first_id: int = 0
) -> Score:
    """Score of a decoder on examples of a task, whose token ids start at `first_id` for it."""
    predictions_NT = predict(decoder, examples.ids_NT + first_id, batch_size) - first_id
    return score(task, task.score(predictions_NT, examples.targets_NT))


def score(task: Task, scores_N: NDArray[np.float64]) -> Score:
    """Mean score over examples, with its standard error."""
    num = len(scores_N)
    error = float(scores_N.std(ddof=1) / math.sqrt(num)) if num > 1 else math.inf
    # Equal scores throughout leave an error of at most one example's worth, not of zero.
    error = max(error, 1 / (2 * num))
    return Score(
        value=float(scores_N.mean()),
        standard_error=error,
        chance=task.chance,
        perfect=1.0,
        num_examples=num,
        category=task.category,
    )
