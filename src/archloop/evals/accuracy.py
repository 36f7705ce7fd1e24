"""Scoring a decoder on a task: its best token at each asked position.

Shape suffixes: N examples, T time, X targets, C classes.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from archloop.evals.base import IGNORE, Examples, Score, Task
from archloop.stack.decoder import Decoder


@torch.inference_mode()
def predict(model: nn.Module, ids_NT: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """The most likely token at every position by the model's logits, (N, T)."""
    device = next(model.parameters()).device
    rows = [
        model(torch.from_numpy(ids_NT[start : start + batch_size]).to(device)).argmax(-1).cpu()
        for start in range(0, len(ids_NT), batch_size)
    ]
    predictions_NT: NDArray[np.int64] = torch.cat(rows).numpy()
    return predictions_NT


def macro_accuracy(predictions_NT: NDArray[np.int64], targets_NT: NDArray[np.int64]) -> float:
    """Mean over classes of the share of each class's targets that were predicted.

    As torchmetrics' ``MulticlassAccuracy`` by default: a class that was predicted but is no target
    counts as 0, one that is neither does not count.
    """
    asked_NT = targets_NT != IGNORE
    targets_X, predictions_X = targets_NT[asked_NT], predictions_NT[asked_NT]
    right_X = targets_X[targets_X == predictions_X]
    classes = np.union1d(targets_X, predictions_X)
    num_C = np.array([(targets_X == c).sum() for c in classes])
    right_C = np.array([(right_X == c).sum() for c in classes])
    return float((right_C / np.maximum(1, num_C)).mean())


def micro_accuracy(predictions_NT: NDArray[np.int64], targets_NT: NDArray[np.int64]) -> float:
    """Share of all targets that were predicted."""
    asked_NT = targets_NT != IGNORE
    return float((predictions_NT[asked_NT] == targets_NT[asked_NT]).mean())


def measure(
    decoder: Decoder, task: Task, examples: Examples, batch_size: int, *, first_id: int = 0
) -> Score:
    """Score of a decoder on examples of a task, whose token ids start at `first_id` for it."""
    predictions_NT = predict(decoder, examples.ids_NT + first_id, batch_size) - first_id
    return score(task, task.score(predictions_NT, examples.targets_NT))


def score(task: Task, scores_N: NDArray[np.float64]) -> Score:
    """Mean score over examples, at least two, with its standard error."""
    num = len(scores_N)
    error = float(scores_N.std(ddof=1) / math.sqrt(num))
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
