"""Linear attention with one decay per head and several keys, values and queries per token.

``S_t = exp(g_t) S_{t-1} + sum_r k_{t,r} v_{t,r}^T``, ``o_{t,r} = S_t^T q_{t,r}``: Mamba-3's MIMO
form (arXiv 2603.15569), with rank 1 as the usual one. A chunk's tokens and ranks are the rows of
one product, so ranks add arithmetic to the same number of passes over memory. As in `ops.ssd`, the
parallel form has two halves, `states` and `read`. Decays, sums and states are in the dtype of g, at
least float32; operands of products in that of q, k and v.

Shape suffixes: B batch, N heads, T time, R ranks, K key width, V value width, n chunks, C tokens in
a chunk.
"""

import torch
from torch import Tensor

from archloop.blocks.ops import linear_attention, ssd, triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import (
    carry,
    chunk_size,
    decay_sums,
    decays_to_end,
    join,
    padded_time,
    split,
)
from archloop.blocks.ops.ssd import decay_ratios

CHUNK_ROWS = 64


def naive(
    q_BNTRK: Tensor, k_BNTRK: Tensor, v_BNTRV: Tensor, g_BNT: Tensor, initial_BNKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The plain form: outputs (B, N, T, R, V) and the final state, token by token."""
    state_BNKV, outputs = initial_BNKV, []
    tokens = zip(*(x.unbind(2) for x in (q_BNTRK, k_BNTRK, v_BNTRV, g_BNT)), strict=True)
    for q, k, v, g in tokens:
        state_BNKV = g.exp()[..., None, None] * state_BNKV + k.transpose(-1, -2) @ v
        outputs.append(q @ state_BNKV)
    return torch.stack(outputs, 2), state_BNKV


def states(
    k_BNTRK: Tensor, v_BNTRV: Tensor, g_BNT: Tensor, initial_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """State before each chunk, (B, N, n, K, V), and after the last token."""
    if _is_ssd(k_BNTRK, v_BNTRV, g_BNT):
        before_BNnK1V, final_BNKV = ssd.states(
            k_BNTRK[..., 0, :], v_BNTRV[..., 0, :], g_BNT, initial_BNKV
        )
        return before_BNnK1V[..., 0, :], final_BNKV
    chunk = tokens_per_chunk(*k_BNTRK.shape[2:4])
    k, v, g = (split(x, chunk) for x in (k_BNTRK, v_BNTRV, g_BNT))
    kept_BNnC, decay_BNn1 = decays_to_end(g)
    v = v * kept_BNnC.to(v.dtype)[..., None, None]
    added_BNnKV = k.flatten(3, 4).transpose(3, 4) @ v.flatten(3, 4)
    return carry(decay_BNn1[..., None], added_BNnKV.to(g.dtype), initial_BNKV)


def read(
    q_BNTRK: Tensor,
    k_BNTRK: Tensor,
    v_BNTRV: Tensor,
    g_BNT: Tensor,
    states_BNnKV: Tensor,
    diagonal: int = 0,
) -> Tensor:
    """Outputs (B, N, T, R, V) in the dtype of v, given the state before each chunk.

    With diagonal -1 a token does not read what it adds itself.
    """
    time, ranks = q_BNTRK.shape[2:4]
    if _is_ssd(k_BNTRK, v_BNTRV, g_BNT):
        q, k, v = (x[..., 0, :] for x in (q_BNTRK, k_BNTRK, v_BNTRV))
        states_BNnK1V = states_BNnKV.unsqueeze(4)
        return ssd.read(q, k, v, g_BNT, states_BNnK1V, diagonal=diagonal)[..., None, :]
    chunk = tokens_per_chunk(time, ranks)
    q, k, v, g = (split(x, chunk) for x in (q_BNTRK, k_BNTRK, v_BNTRV, g_BNT))
    q, k, v = (x.flatten(3, 4) for x in (q, k, v))
    scores, since_BNnC = decayed_scores(q @ k.transpose(3, 4), g, diagonal)
    since = since_BNnC[..., None].to(v.dtype)
    if ranks > 1:
        since = since.repeat_interleave(ranks, -2)
    y = (q * since) @ states_BNnKV.to(v.dtype) + scores @ v
    return join(y.unflatten(3, (chunk, ranks)), time)


def _is_ssd(k_BNTRK: Tensor, v_BNTRV: Tensor, g_BNT: Tensor) -> bool:
    """Whether `ssd` has kernels for this: one rank, on a GPU."""
    return k_BNTRK.shape[3] == 1 and linear_attention.on_gpu(g_BNT, k_BNTRK, v_BNTRV)


def decayed_scores(
    scores_BNnMM: Tensor, g_BNnC: Tensor, diagonal: int = 0
) -> tuple[Tensor, Tensor]:
    """Scores between a chunk's rows, C R of them, times the decay between their tokens (j up to a
    diagonal); and the decay since the chunk's start, (B, N, n, C).
    """
    rows, tokens = scores_BNnMM.shape[-1], g_BNnC.shape[-1]
    if triton_kernels.usable(g_BNnC) and rows >= 16:
        from archloop.blocks.ops.gpu.decay import DecayedScores

        b_BNnC = decay_sums(g_BNnC)
        decayed: Tensor = apply(DecayedScores, scores_BNnMM, b_BNnC, diagonal)
        return decayed, b_BNnC.exp()
    ratios, since_BNnC, _ = decay_ratios(g_BNnC, diagonal)
    ratios = ratios.to(scores_BNnMM.dtype)
    if rows > tokens:
        ratios = ratios.repeat_interleave(rows // tokens, -1)
        ratios = ratios.repeat_interleave(rows // tokens, -2)
    return scores_BNnMM * ratios, since_BNnC


def tokens_per_chunk(time: int, ranks: int) -> int:
    """A power of two whose rows are about `CHUNK_ROWS`."""
    return chunk_size(time, 1 << max(CHUNK_ROWS // ranks, 1).bit_length() - 1)


def states_flops(time: int, ranks: int, key_width: int, value_width: int) -> int:
    """FLOPs of `states` for one head."""
    chunk = tokens_per_chunk(time, ranks)
    padded = padded_time(time, chunk)
    return (2 * padded * ranks + 2 * padded // chunk) * key_width * value_width


def read_flops(time: int, ranks: int, key_width: int, value_width: int) -> int:
    """FLOPs of `read` for one head."""
    chunk = tokens_per_chunk(time, ranks)
    rows = padded_time(time, chunk) * ranks
    within = 2 * rows * chunk * ranks * (key_width + value_width)
    return 2 * rows * key_width * value_width + within
