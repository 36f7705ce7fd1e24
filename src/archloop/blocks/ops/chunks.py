"""Time cut into chunks, and the recurrence that carries a state from chunk to chunk.

Inside a chunk everything is matrix products; between chunks a state decays and takes in what the
chunk adds: ``S_{i+1} = a_i S_i + X_i``.

Shape suffixes: B batch, N heads, T time, n chunks, C chunk length, K key width (1 where a head has
one decay), V value width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_BYTES = 16 << 20
"""Largest tensor that holds the states of a chunk. For each tensor of 32 MiB and more the C library
asks the system for memory anew: on a CPU, training Mamba took 2.7 times as long with such tensors.
"""
FEWEST_TOKENS = 8
VANISHED = {torch.float32: -104.0, torch.float64: -746.0}
"""The weakest log-decay g, by precision, whose factor ``e^g`` rounds to 0."""
LONG_CARRY = 64
"""Chunks beyond which the carry runs in two levels, about 2 sqrt(n) sequential steps, not n."""

LONG_CHUNK = 64
"""Chunk of the delta rule where Triton kernels compute it: matrix units do the products of the
inverse, which would cost a CPU more than a longer chunk saves."""


def chunk_size(time: int, largest: int, smallest: int = 1) -> int:
    """The power of two, at most `largest`, that holds a short input without much padding."""
    if time >= largest:
        return largest
    return max(smallest, 1 << max(time - 1, 0).bit_length())


def tokens_at_once(bytes_per_token: int, largest: int) -> int:
    """Tokens, at most `largest`, whose states are kept at once in `MOST_BYTES`."""
    return min(largest, max(FEWEST_TOKENS, MOST_BYTES // max(1, bytes_per_token)))


def padded_time(time: int, chunk: int) -> int:
    """`time` rounded up to whole chunks."""
    return -(-time // chunk) * chunk


def split(x: Tensor, chunk: int) -> Tensor:
    """(B, N, T, ...) as (B, N, n, C, ...), zeros behind the end.

    A zero log-decay and a zero key leave a state as it is, so padding needs no mask.
    """
    time, trailing = x.shape[2], x.dim() - 3
    missing = padded_time(time, chunk) - time
    if missing:
        x = F.pad(x, (0, 0) * trailing + (0, missing))
    return x.reshape(*x.shape[:2], -1, chunk, *x.shape[3:])


def join(x: Tensor, time: int) -> Tensor:
    """The reverse of `split`."""
    return x.flatten(2, 3)[:, :, :time]


def decay_sums(g_BNnCX: Tensor) -> Tensor:
    """Log-decays summed from the start of each chunk.

    A decay that leaves nothing counts as `VANISHED`, however strong it is: in a sum much larger
    than that, the weak decays of the tokens after it would be rounded away.
    """
    return g_BNnCX.clamp(min=VANISHED[g_BNnCX.dtype]).cumsum(3)


def decays_to_end(g_BNnCX: Tensor) -> tuple[Tensor, Tensor]:
    """Decay from each token to the end of its chunk, (B, N, n, C, X), and over each whole chunk,
    (B, N, n, 1, X).

    Each is summed from the end of the chunk. Taking the sum so far from the total would give the
    same number, but would round away the weak decays that follow a strong one.
    """
    g_BNnCX = g_BNnCX.clamp(min=VANISHED[g_BNnCX.dtype])
    later_BNnCX = torch.cat([g_BNnCX[:, :, :, 1:], torch.zeros_like(g_BNnCX[:, :, :, :1])], 3)
    sums_BNnCX = later_BNnCX.flip(3).cumsum(3).flip(3)
    total_BNn1X = sums_BNnCX[:, :, :, :1] + g_BNnCX[:, :, :, :1]
    return sums_BNnCX.exp(), total_BNn1X.exp()


def shifted(h_BTF: Tensor, start_BF: Tensor) -> Tensor:
    """The state before each step (B, T, F), given those after each step and the first one."""
    return torch.cat([start_BF[:, None], h_BTF[:, :-1]], 1)


def carry(
    decay_BNnK1: Tensor, input_BNnKV: Tensor, initial_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """State before each chunk, (B, N, n, K, V), and the state after the last.

    Decay and input may have any trailing dimensions that broadcast.

    Args:
        decay_BNnK1: factor of each chunk on the state, between 0 and 1.
        input_BNnKV: what each chunk adds.
        initial_BNKV: state before the first chunk; None for zero.
    """
    num_chunks = input_BNnKV.shape[2]
    if initial_BNKV is None:
        initial_BNKV = torch.zeros_like(input_BNnKV[:, :, 0])
    if num_chunks <= LONG_CARRY:
        return _carry_loop(decay_BNnK1, input_BNnKV, initial_BNKV)
    group = 1 << math.ceil(math.log2(num_chunks) / 2)
    missing = padded_time(num_chunks, group) - num_chunks
    padding = (0, 0) * (input_BNnKV.dim() - 3) + (0, missing)
    decay = F.pad(decay_BNnK1, padding, value=1.0).unflatten(2, (-1, group)).transpose(2, 3)
    added = F.pad(input_BNnKV, padding).unflatten(2, (-1, group)).transpose(2, 3)
    # All groups at once from zero; then the groups one after another; then their starts spread.
    local, total = _carry_loop(decay, added, torch.zeros_like(added[:, :, 0]))
    reach = decay.cumprod(2)
    starts, final = _carry_loop(reach[:, :, -1], total, initial_BNKV)
    before = torch.cat([torch.ones_like(reach[:, :, :1]), reach[:, :, :-1]], 2)
    states = (local + before * starts[:, :, None]).transpose(2, 3).flatten(2, 3)
    return states[:, :, :num_chunks], final


def _carry_loop(decay: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`carry` along dimension 2, one step at a time."""
    states = []
    # unbind, not indexing: the gradient of an index is as large as the tensor it came from.
    for a, x in zip(decay.unbind(2), added.unbind(2), strict=True):
        states.append(state)
        state = torch.addcmul(x, a, state)
    return torch.stack(states, 2), state
