"""Linear attention with a decay per key channel: GLA (arXiv 2312.06635), HGRN2, KDA.

``S_t = diag(exp g_t) S_{t-1} + k_t v_t^T``; ``o_t = S_t^T q_t``, with log-decays g <= 0.

The parallel form has two halves, so that a block can read another's state: `states` folds keys and
values into the state before each chunk; `read` answers queries from those states and from the keys
of their own chunk. Within a chunk, ``sum_k q_ik k_jk exp(b_ik - b_jk)`` (b the cumulative
log-decay) does not factor into ``q e^b`` and ``k e^-b`` without overflow. So a chunk is halved
again and again: between the left and right half of each block the reference point is the end of
the left one, which makes both exponents at most 0, and only blocks of 4 are left to be formed
row by row. Exact at any gate strength, and nothing above the diagonal is computed.

Everything is computed in the dtype of g: at least float32. On a GPU, kernels of our own do the same
(`gpu.linear_attention`): products take operands in the dtype of v and sum in float32, and the
outputs and the states before each chunk are in the dtype of v.

Shape suffixes: as in `ops.chunks`; X all leading dimensions, h half-block.
"""

import torch
from torch import Tensor

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import carry, chunk_size, join, padded_time, split

CHUNK = 64
LEAF = 4
"""Block length at which halving stops."""


def recurrent(
    q_BNTK: Tensor, k_BNTK: Tensor, v_BNTV: Tensor, g_BNTK: Tensor, initial_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The plain reference: outputs (B, N, T, V) and the final state, token by token.

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
    b = g.cumsum(3)
    last = b[:, :, :, -1:]
    added_BNnKV = (k * (last - b).exp()).transpose(3, 4) @ v
    return carry(last.exp().transpose(3, 4), added_BNnKV, initial_BNKV)


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
    b = g.cumsum(3)
    return join((q * b.exp()) @ states_BNnKV + within_chunk(q, k, v, g, b), time)


def on_gpu(g: Tensor, *operands: Tensor) -> bool:
    """Whether kernels serve log-decays g and operands of products of these dtypes."""
    served = (torch.float32, torch.bfloat16)
    return triton_kernels.usable(g) and all(x.dtype in served for x in operands)


def within_chunk(
    q_XCK: Tensor, k_XCK: Tensor, v_XCV: Tensor, g_XCK: Tensor, b_XCK: Tensor
) -> Tensor:
    """``o_i = sum_{j <= i} sum_k q_ik k_jk exp(b_ik - b_jk) v_j``, (..., C, V), by halving."""
    chunk = v_XCV.shape[-2]
    y_XCV = (leaf_scores(q_XCK, k_XCK, g_XCK) @ _blocks(v_XCV, LEAF)).flatten(-3, -2)
    half = LEAF
    while half < chunk:
        scores_Xhh = half_scores(q_XCK, k_XCK, b_XCK, half)
        left_XhV = _blocks(v_XCV, half)[..., 0::2, :, :]
        _blocks(y_XCV, half)[..., 1::2, :, :] += scores_Xhh @ left_XhV
        half *= 2
    return y_XCV


def leaf_scores(q_XCK: Tensor, k_XCK: Tensor, g_XCK: Tensor, *, diagonal: bool = True) -> Tensor:
    """Scores inside each block of `LEAF` tokens, (..., C/LEAF, LEAF, LEAF), zero above.

    Keys decay from row to row as the state does, so one exp per gate serves all rows and nothing
    above the diagonal is formed.
    """
    q, k, e = (_blocks(x, LEAF).unbind(-2) for x in (q_XCK, k_XCK, g_XCK.exp()))
    zero = torch.zeros_like(q[0][..., 0])
    decayed: list[Tensor] = []
    rows = []
    for row in range(LEAF):
        decayed = [key * e[row] for key in decayed]
        scores = [(q[row] * key).sum(-1) for key in decayed]
        scores.append((q[row] * k[row]).sum(-1) if diagonal else zero)
        decayed.append(k[row])
        rows.append(torch.stack(scores + [zero] * (LEAF - 1 - row), -1))
    return torch.stack(rows, -2)


def half_scores(q_XCK: Tensor, k_XCK: Tensor, b_XCK: Tensor, half: int) -> Tensor:
    """Scores of the queries in each block's right half on the keys in its left, (..., h, h)."""
    q, b_right = (_blocks(x, half)[..., 1::2, :, :] for x in (q_XCK, b_XCK))
    k, b_left = (_blocks(x, half)[..., 0::2, :, :] for x in (k_XCK, b_XCK))
    middle = b_left[..., -1:, :]
    return (q * (b_right - middle).exp()) @ (k * (middle - b_left).exp()).transpose(-1, -2)


def states_flops(time: int, key_width: int, value_width: int) -> int:
    """FLOPs of `states` for one head."""
    chunk = chunk_size(time, CHUNK, LEAF)
    padded = padded_time(time, chunk)
    return (2 * padded + 2 * padded // chunk) * key_width * value_width


def read_flops(time: int, key_width: int, value_width: int, largest: int = CHUNK) -> int:
    """FLOPs of `read` for one head."""
    chunk = chunk_size(time, largest, LEAF)
    padded = padded_time(time, chunk)
    halves = padded * (chunk - LEAF) * (key_width + value_width)
    leaves = padded * (leaf_flops(key_width) + 2 * LEAF * value_width)
    return 2 * padded * key_width * value_width + halves + leaves


def leaf_flops(key_width: int, *, diagonal: bool = True) -> int:
    """FLOPs of `leaf_scores` for one token of one head."""
    pairs = LEAF * (LEAF - 1) // 2
    return (3 * pairs + 2 * LEAF * diagonal) * key_width // LEAF


def step_flops(key_width: int, value_width: int, *, consumer: bool = False) -> int:
    """FLOPs of `advance` and `query`, or of `query` alone, for one head."""
    return (2 if consumer else 5) * key_width * value_width


def _blocks(x_XCK: Tensor, length: int) -> Tensor:
    """(..., C/length, length, K)."""
    return x_XCK.reshape(*x_XCK.shape[:-2], -1, length, x_XCK.shape[-1])
