"""Accuracy over classes and over tokens, as MAD counts them, and a network's best tokens.

Shape suffixes: N examples, T time, X targets, C classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from archloop.evals.base import IGNORE


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
