"""Held-out bits per byte: how well a decoder predicts text, whatever its vocabulary.

The held-out tokens are cut into windows; each window's tokens but the first are predicted from
those before them in the window. Bits over all windows are divided by the bytes of text that the
predicted tokens stand for, so that vocabularies compare. Guessing bytes costs 8 bits.

Shape suffixes: N windows, T time, V vocabulary.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from archloop.errors import UserError
from archloop.evals.base import Score
from archloop.stack.decoder import Decoder

CATEGORY = "text"


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


@torch.inference_mode()
def measure(
    decoder: Decoder,
    windows_NT: NDArray[np.int64],
    num_bytes_V: NDArray[np.int64],
    batch_size: int,
) -> Score:
    """Score of a decoder on windows of held-out text.

    Args:
        decoder: in evaluation mode.
        windows_NT: from `windows`.
        num_bytes_V: bytes of each text token.
        batch_size: windows at a time.
    """
    bits = [
        _bits(decoder, torch.from_numpy(windows_NT[start : start + batch_size]))
        for start in range(0, len(windows_NT), batch_size)
    ]
    return score(np.concatenate(bits), num_bytes_V[windows_NT[:, 1:]].sum(1))


def score(bits_N: NDArray[np.float64], bytes_N: NDArray[np.int64]) -> Score:
    """Bits per byte with the standard error of a ratio of sums over windows (delta method).

    Args:
        bits_N: bits that each window cost, at least two.
        bytes_N: bytes of text that they stand for.
    """
    num, value = len(bits_N), float(bits_N.sum() / bytes_N.sum())
    residual_N = bits_N - value * bytes_N
    error = float(np.sqrt((residual_N**2).sum() / (num * (num - 1))) / bytes_N.mean())
    return Score(
        value=value,
        standard_error=error,
        chance=8.0,
        perfect=0.0,
        num_examples=num,
        category=CATEGORY,
    )


def _bits(decoder: Decoder, windows_NT: Tensor) -> NDArray[np.float64]:
    """Bits that each window's predicted tokens cost, (N,)."""
    device = decoder.embedding.weight.device
    windows_NT = windows_NT.to(device)
    logits_NTV = decoder(windows_NT[:, :-1]).float()
    nats_NT = F.cross_entropy(logits_NTV.transpose(1, 2), windows_NT[:, 1:], reduction="none")
    bits_N: NDArray[np.float64] = nats_NT.double().sum(1).cpu().numpy() / math.log(2)
    return bits_N
