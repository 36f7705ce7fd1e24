"""Linear attention with a decay per key channel: GLA (arXiv 2312.06635), HGRN2, KDA.

``S_t = diag(exp g_t) S_{t-1} + k_t v_t^T``; ``o_t = S_t^T q_t``, with log-decays g <= 0.

The parallel form has two halves, so that a block can read another's state: `states` folds keys and
values into the state before each chunk; `read` answers queries from those states and from the keys
of their own chunk. Within a chunk, ``sum_k q_ik k_jk exp(b_ik - b_jk)`` (b the cumulative
log-decay) does not factor into ``q e^b`` and ``k e^-b`` without overflow. So a chunk is put
together from its halves, these from theirs, down to blocks of 4 that are formed row by row: queries
come decayed since the start of their half, keys until the end of theirs, and they meet at the
border. Every factor is a product of decays, at most 1. Exact at any gate strength, with one exp per
gate, and nothing above the diagonal is computed.

Everything is computed in the dtype of g: at least float32. On a GPU, kernels of our own do the same
(`gpu.linear_attention`): products take operands in the dtype of v and sum in float32, and the
outputs and the states before each chunk are in the dtype of v.

Shape suffixes: as in `ops.chunks`; X all leading dimensions, h half-block.
"""

import torch
from torch import Tensor

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import carry, chunk_size, decays_to_end, join, padded_time, split

CHUNK = 64
LEAF = 4
"""Length of the blocks that are formed row by row."""


def naive(
    q_BNTK: Tensor, k_BNTK: Tensor, v_BNTV: Tensor, g_BNTK: Tensor, initial_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The plain form: outputs (B, N, T, V) and the final state, token by token.

    Serves a decay per head as well (g of width 1).
    """
    q, k, v = (x.to(g_BNTK.dtype) for x in (q_BNTK, k_BNTK, v_BNTV))
    state_BNKV = initial_BNKV
    if state_BNKV is None:
        state_BNKV = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_t, k_t, v_t, g_t in zip(*(x.unbind(2) for x in (q, k, v, g_BNTK)), strict=True):
        state_BNKV = advance(state_BNKV, k_t, v_t, g_t)
        outputs.append(query(state_BNKV, q_t))
    return torch.stack(outputs, 2), state_BNKV


def advance(state_BNKV: Tensor, k_BNK: Tensor, v_BNV: Tensor, g_BNK: Tensor) -> Tensor:
    """The state one token later."""
    k_BNK, v_BNV = k_BNK.to(state_BNKV.dtype), v_BNV.to(state_BNKV.dtype)
    return g_BNK.exp()[..., None] * state_BNKV + k_BNK[..., None] * v_BNV[..., None, :]


def query(state_BNKV: Tensor, q_BNK: Tensor) -> Tensor:
    """One token's output (B, N, V)."""
    return (q_BNK.to(state_BNKV.dtype)[..., None, :] @ state_BNKV)[..., 0, :]


def states(
    k_BNTK: Tensor, v_BNTV: Tensor, g_BNTK: Tensor, initial_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """State before each chunk, (B, N, n, K, V), and after the last token."""
    if on_gpu(g_BNTK, k_BNTK, v_BNTV):
        from archloop.blocks.ops.gpu.carry import SMALLEST_CHUNK
        from archloop.blocks.ops.gpu.linear_attention import States, Sums

        chunk = chunk_size(k_BNTK.shape[2], CHUNK, SMALLEST_CHUNK)
        b_BNSK = apply(Sums, g_BNTK, chunk)
        states_BNnKV, final_BNKV = apply(States, k_BNTK, v_BNTV, b_BNSK, initial_BNKV, chunk)
        return states_BNnKV, final_BNKV
    chunk = chunk_size(k_BNTK.shape[2], CHUNK, LEAF)
    k, v, g = (split(x.to(g_BNTK.dtype), chunk) for x in (k_BNTK, v_BNTV, g_BNTK))
    kept_BNnCK, decay_BNn1K = decays_to_end(g)
    added_BNnKV = (k * kept_BNnCK).transpose(3, 4) @ v
    return carry(decay_BNn1K.transpose(3, 4), added_BNnKV, initial_BNKV)


def read(
    q_BNTK: Tensor,
    k_BNTK: Tensor,
    v_BNTV: Tensor,
    g_BNTK: Tensor,
    states_BNnKV: Tensor,
    largest: int = CHUNK,
) -> Tensor:
    """Outputs (B, N, T, V), given the state before each chunk of at most `largest` tokens."""
    time = q_BNTK.shape[2]
    if on_gpu(g_BNTK, q_BNTK, k_BNTK, v_BNTV):
        from archloop.blocks.ops.gpu.carry import SMALLEST_CHUNK
        from archloop.blocks.ops.gpu.linear_attention import Read, Sums

        chunk = chunk_size(time, largest, SMALLEST_CHUNK)
        b_BNSK = apply(Sums, g_BNTK, chunk)
        o_BNTV: Tensor = apply(Read, q_BNTK, k_BNTK, v_BNTV, b_BNSK, states_BNnKV, chunk)
        return o_BNTV
    chunk = chunk_size(time, largest, LEAF)
    q, k, v, g = (split(x.to(g_BNTK.dtype), chunk) for x in (q_BNTK, k_BNTK, v_BNTV, g_BNTK))
    scores_BNnCC, q, _, _ = chunk_scores(q, k, g)
    return join(q @ states_BNnKV + scores_BNnCC @ v, time)


def on_gpu(g: Tensor, *operands: Tensor) -> bool:
    """Whether kernels serve log-decays g and operands of products of these dtypes."""
    served = (torch.float32, torch.bfloat16)
    return triton_kernels.usable(g) and all(x.dtype in served for x in operands)


def chunk_scores(
    q_XCK: Tensor, k_XCK: Tensor, g_XCK: Tensor, *, diagonal: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A chunk's scores, and what crosses its borders.

    Returns:
        ``sum_k q_ik k_jk exp(b_ik - b_jk)`` for j < i, or for j <= i with the diagonal, and 0
        elsewhere, (..., C, C); the queries decayed since the chunk's start; the keys decayed until
        its end; the decay over all of it, (..., 1, K).
    """
    scores, q, k, decay = _leaves(q_XCK, k_XCK, g_XCK, diagonal)
    while scores.shape[-3] > 1:
        (q_left, q_right), (k_left, k_right) = halves(q), halves(k)
        (decay_left, decay_right), (left, right) = halves(decay), halves(scores)
        scores = lower_blocks(left, q_right @ k_left.transpose(-1, -2), right)
        q = torch.cat([q_left, q_right * decay_left], -2)
        k = torch.cat([k_left * decay_right, k_right], -2)
        decay = decay_left * decay_right
    return scores[..., 0, :, :], q[..., 0, :, :], k[..., 0, :, :], decay[..., 0, :, :]


def lower_blocks(left_Xhh: Tensor, corner_Xhh: Tensor, right_Xhh: Tensor) -> Tensor:
    """``[[left, 0], [corner, right]]``, (..., 2h, 2h)."""
    above = torch.cat([left_Xhh, torch.zeros_like(left_Xhh)], -1)
    return torch.cat([above, torch.cat([corner_Xhh, right_Xhh], -1)], -2)


def halves(x: Tensor, dim: int = -3) -> tuple[Tensor, Tensor]:
    """Blocks at even and at odd places of a dimension: left and right halves of larger ones."""
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim)
    return even, odd


def states_flops(time: int, key_width: int, value_width: int) -> int:
    """FLOPs of `states` for one head."""
    chunk = chunk_size(time, CHUNK, LEAF)
    padded = padded_time(time, chunk)
    return (2 * padded + 2 * padded // chunk) * key_width * value_width


def read_flops(time: int, key_width: int, value_width: int, largest: int = CHUNK) -> int:
    """FLOPs of `read` for one head."""
    chunk = chunk_size(time, largest, LEAF)
    padded = padded_time(time, chunk)
    scores = padded * scores_flops(chunk, key_width)
    return scores + 2 * padded * (key_width + chunk) * value_width


def scores_flops(chunk: int, key_width: int, *, diagonal: bool = True) -> int:
    """FLOPs of `chunk_scores` for one token of one head."""
    pairs = LEAF * (LEAF - 1) // 2
    leaves = (3 * pairs + 2 * LEAF * diagonal) * key_width // LEAF
    return (chunk - LEAF) * key_width + leaves


def step_flops(key_width: int, value_width: int, *, consumer: bool = False) -> int:
    """FLOPs of `advance` and `query`, or of `query` alone, for one head."""
    return (2 if consumer else 5) * key_width * value_width


def _leaves(
    q_XCK: Tensor, k_XCK: Tensor, g_XCK: Tensor, diagonal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `chunk_scores`, of each block of `LEAF` tokens: (..., C/LEAF, LEAF, ...)."""
    q, k, e = (x.unflatten(-2, (-1, LEAF)).unbind(-2) for x in (q_XCK, k_XCK, g_XCK.exp()))
    zero = torch.zeros_like(q[0][..., 0])
    decay, queries, keys, rows = e[0], [q[0] * e[0]], [k[0]], []
    for row in range(LEAF):
        if row:
            decay = decay * e[row]
            queries.append(q[row] * decay)
            keys = [key * e[row] for key in keys] + [k[row]]
        asked = keys if diagonal else keys[:-1]
        scores = [(q[row] * key).sum(-1) for key in asked]
        rows.append(torch.stack(scores + [zero] * (LEAF - len(scores)), -1))
    blocks = (torch.stack(parts, -2) for parts in (rows, queries, keys))
    return *blocks, decay[..., None, :]
