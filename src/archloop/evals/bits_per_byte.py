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
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from archloop.errors import UserError
from archloop.evals.base import Score
from archloop.evals.generation import repeats
from archloop.stack.decoder import Decoder

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
    nats_NT = token_nats(decoder, windows_NT, batch_size)
    return score(nats_NT.sum(1).numpy() / math.log(2), num_bytes_V[windows_NT[:, 1:]].sum(1))


def measure_parts(
    decoder: Decoder,
    windows_NT: NDArray[np.int64],
    num_bytes_V: NDArray[np.int64],
    batch_size: int,
) -> dict[str, Score]:
    """As `measure`, with the scores of repeated pairs and of the others, by name."""
    nats_NT = token_nats(decoder, windows_NT, batch_size)
    return parts(nats_NT.numpy() / math.log(2), windows_NT, num_bytes_V)


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


@torch.inference_mode()
def token_nats(decoder: Decoder, windows_NT: NDArray[np.int64], batch_size: int) -> Tensor:
    """Nats that each predicted token costs, (N, T) float64 on the CPU.

    Under the caller's autocast, if there is one.
    """
    device = decoder.embedding.weight.device
    rows = []
    for start in range(0, len(windows_NT), batch_size):
        batch_BT = torch.from_numpy(windows_NT[start : start + batch_size]).to(device)
        logits_BTV = decoder(batch_BT[:, :-1]).float()
        nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), batch_BT[:, 1:], reduction="none")
        rows.append(nats_BT.double().cpu())
    return torch.cat(rows)


def score(bits_N: NDArray[np.float64], bytes_N: NDArray[np.int64]) -> Score:
    """Bits per byte with the standard error of a ratio of sums over windows (delta method).

    Args:
        bits_N: bits that each window cost, at least two.
        bytes_N: bytes of text that they stand for.

    Raises:
        UserError: they stand for no byte at all.
    """
    if not bytes_N.any():
        raise UserError("no predicted token is of this part of the text; give longer windows")
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
