"""The gated delta rule: Gated DeltaNet (arXiv 2412.06464) and KDA (arXiv 2510.26692).

``S = exp(g_t) S_{t-1}``; ``S_t = S + k_t (beta_t (v_t - S^T k_t))^T``; ``o_t = S_t^T q_t``. A write
first takes back what the state already answers to its key. With the corrected value
``v'_t = beta_t (v_t - S^T k_t)`` this is gated linear attention, so `corrected` finds those values
and the states, and `read` answers queries from them as `ops.ssd` or
`ops.linear_attention` do.

Within a chunk (b the cumulative log-decay) the corrected values solve a unit lower triangular
system, ``(I + L) v' = beta v - (beta k e^b) S``, where for j < i
``L_ij = beta_i sum_k k_ik k_jk e^(b_ik - b_jk)``. Its inverse is built by doubling:
``[[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]]`` from blocks of 4, whose inverse is the
exact finite series. Products only, so it compiles and exports, and on a CPU it is as fast as a
triangular solve; unlike the series over a whole chunk it loses nothing on repeated keys. On a GPU
`ops.gpu.delta` finds the same, in longer chunks.

Shape suffixes: as in `ops.chunks`; K is 1 in g where a head has one decay; G key heads, each of
which serves N / G heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from archloop.blocks.ops import linear_attention, ssd, triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import chunk_size, join, padded_time, split

CHUNK = 32
"""Half that of the other forms: the inverse and its use grow with the chunk."""
LONG_CHUNK = 64
"""Where kernels of our own compute: matrix units do the inverse's products."""
WIDEST_KERNEL = 128
"""Key and value widths that fit a program's registers."""
LEAF = linear_attention.LEAF


def recurrent(
    q_BNTK: Tensor,
    k_BNTK: Tensor,
    v_BNTV: Tensor,
    beta_BNT: Tensor,
    g_BNTK: Tensor,
    initial_BNKV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The plain reference: outputs (B, N, T, V) and the final state, token by token."""
    q, k, v, beta = (x.to(g_BNTK.dtype) for x in (q_BNTK, k_BNTK, v_BNTV, beta_BNT))
    state_BNKV = initial_BNKV
    if state_BNKV is None:
        state_BNKV = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for q_t, k_t, v_t, b_t, g_t in zip(
        *(x.unbind(2) for x in (q, k, v, beta, g_BNTK)), strict=True
    ):
        state_BNKV = advance(state_BNKV, k_t, v_t, b_t, g_t)
        outputs.append(linear_attention.query(state_BNKV, q_t))
    return torch.stack(outputs, 2), state_BNKV


def advance(
    state_BNKV: Tensor, k_BNK: Tensor, v_BNV: Tensor, beta_BN: Tensor, g_BNK: Tensor
) -> Tensor:
    """The state one token later."""
    k_BNK, v_BNV, beta_BN = (x.to(state_BNKV.dtype) for x in (k_BNK, v_BNV, beta_BN))
    state_BNKV = g_BNK.exp()[..., None] * state_BNKV
    error_BNV = v_BNV - linear_attention.query(state_BNKV, k_BNK)
    return state_BNKV + k_BNK[..., None] * (beta_BN[..., None] * error_BNV)[..., None, :]


def corrected(
    k_BGTK: Tensor, v_BNTV: Tensor, beta_BNT: Tensor, g_BNTK: Tensor, initial_BNKV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Corrected values (B, N, T, V), state before each chunk (B, N, n, K, V), final state."""
    if _has_kernel(k_BGTK, v_BNTV, g_BNTK):
        from archloop.blocks.ops.gpu.delta import Corrected

        values_BNTV, states_BNnKV, final_BNKV = apply(
            Corrected, k_BGTK, v_BNTV, beta_BNT, g_BNTK, initial_BNKV
        )
        return values_BNTV, states_BNnKV, final_BNKV
    k_BNTK = ssd.to_heads(k_BGTK, v_BNTV.shape[1])
    time, dtype = k_BNTK.shape[2], g_BNTK.dtype
    chunk = chunk_size(time, CHUNK, LEAF)
    k, v, g = (split(x.to(dtype), chunk) for x in (k_BNTK, v_BNTV, g_BNTK))
    beta_BNnC1 = split(beta_BNT.to(dtype), chunk)[..., None]
    b = g.cumsum(3)
    inverse_BNnCC = _inverse(k, beta_BNnC1, g, b)
    wanted_BNnCV, asked_BNnCK = beta_BNnC1 * v, beta_BNnC1 * k * b.exp()
    last = b[:, :, :, -1:]
    keys_BNnKC = (k * (last - b).exp()).transpose(3, 4)
    state_BNKV = initial_BNKV
    if state_BNKV is None:
        state_BNKV = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    before, values = [], []
    parts = (last.exp().transpose(3, 4), keys_BNnKC, inverse_BNnCC, wanted_BNnCV, asked_BNnCK)
    for decay, keys, inverse, wanted, asked in zip(*(x.unbind(2) for x in parts), strict=True):
        before.append(state_BNKV)
        values.append(inverse @ (wanted - asked @ state_BNKV))
        state_BNKV = decay * state_BNKV + keys @ values[-1]
    return join(torch.stack(values, 2), time), torch.stack(before, 2), state_BNKV


def read(
    q_BGTK: Tensor, k_BGTK: Tensor, corrected_BNTV: Tensor, g_BNTK: Tensor, states_BNnKV: Tensor
) -> Tensor:
    """Outputs (B, N, T, V), given what `corrected` found."""
    (_, heads, time, _), groups = corrected_BNTV.shape, q_BGTK.shape[1]
    chunk = CHUNK if states_BNnKV.shape[2] * CHUNK >= time else LONG_CHUNK
    if g_BNTK.shape[-1] > 1:
        q_BNTK, k_BNTK = (ssd.to_heads(x, heads) for x in (q_BGTK, k_BGTK))
        return linear_attention.read(q_BNTK, k_BNTK, corrected_BNTV, g_BNTK, states_BNnKV, chunk)
    states_BGnKRV = states_BNnKV.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2, 5)
    return ssd.read(q_BGTK, k_BGTK, corrected_BNTV, g_BNTK[..., 0], states_BGnKRV, chunk, LEAF)


def _has_kernel(k: Tensor, v: Tensor, g: Tensor) -> bool:
    return (
        triton_kernels.usable(k, torch.float32, torch.bfloat16)
        and k.dtype == v.dtype
        and g.dtype == torch.float32
        and max(k.shape[-1], v.shape[-1]) <= WIDEST_KERNEL
    )


def _inverse(k: Tensor, beta_BNnC1: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """``(I + L)^-1`` of each chunk, (B, N, n, C, C)."""
    if b.shape[-1] > 1:
        scaled = beta_BNnC1 * k
        leaves = linear_attention.leaf_scores(scaled, k, g, diagonal=False)
        return unit_lower_inverse(
            leaves, k.shape[3], lambda half: linear_attention.half_scores(scaled, k, b, half)
        )
    lower = beta_BNnC1 * (k @ k.transpose(-1, -2)) * ssd.decay_ratios(b[..., 0], -1)
    leaves = diagonal_blocks(lower, LEAF)
    return unit_lower_inverse(leaves, k.shape[3], lambda half: corner_blocks(lower, half))


def unit_lower_inverse(leaves_Xcc: Tensor, size: int, below: Callable[[int], Tensor]) -> Tensor:
    """``(I + L)^-1``, (..., size, size), for strictly lower triangular L.

    Args:
        leaves_Xcc: L's diagonal blocks of `LEAF` rows, (..., size/LEAF, LEAF, LEAF).
        size: rows of L.
        below: for h, L's blocks under the diagonal that join two diagonal blocks of h rows,
            (..., size/2h, h, h).
    """
    one = torch.eye(LEAF, dtype=leaves_Xcc.dtype, device=leaves_Xcc.device)
    inverse = (one - leaves_Xcc) @ (one + leaves_Xcc @ leaves_Xcc)
    half = LEAF
    while half < size:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -(second @ below(half) @ first)
        above = torch.cat([first, torch.zeros_like(first)], -1)
        inverse = torch.cat([above, torch.cat([corner, second], -1)], -2)
        half *= 2
    return inverse[..., 0, :, :]


def diagonal_blocks(lower_XCC: Tensor, length: int) -> Tensor:
    """(..., C/length, length, length) along the diagonal."""
    count = lower_XCC.shape[-1] // length
    blocks = lower_XCC.reshape(*lower_XCC.shape[:-2], count, length, count, length)
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def corner_blocks(lower_XCC: Tensor, half: int) -> Tensor:
    """(..., C/2h, h, h): lower left quarter of each diagonal block of 2h rows."""
    return diagonal_blocks(lower_XCC, 2 * half)[..., half:, :half]


def corrected_flops(time: int, key_width: int, value_width: int, *, vector: bool) -> int:
    """FLOPs of `corrected` for one head, with a decay per key channel or per head."""
    chunk = chunk_size(time, CHUNK, LEAF)
    padded = padded_time(time, chunk)
    if vector:
        leaves = linear_attention.leaf_flops(key_width, diagonal=False)
        scores = padded * ((chunk - LEAF) * key_width + leaves)
    else:
        scores = padded * 2 * chunk * key_width
    # Two products of h x h blocks for each of C/2h pairs: 2 C h^2, over h = 4, 8, ..., C/2.
    halves = padded * 2 * (chunk**2 - LEAF**2) // 3
    series = padded * 4 * LEAF**2
    apply = 2 * padded * chunk * value_width
    carried = 4 * padded * key_width * value_width
    return scores + halves + series + apply + carried


def read_flops(time: int, key_width: int, value_width: int, *, vector: bool) -> int:
    """FLOPs of `read` for one head."""
    if vector:
        return linear_attention.read_flops(time, key_width, value_width, largest=CHUNK)
    return ssd.read_flops(time, key_width, value_width, largest=CHUNK, smallest=LEAF)


def advance_flops(key_width: int, value_width: int) -> int:
    """FLOPs of `advance` for one head."""
    return 5 * key_width * value_width
