"""The gated delta rule: Gated DeltaNet (arXiv 2412.06464) and KDA (arXiv 2510.26692).

``S = exp(g_t) S_{t-1}``; ``S_t = S + k_t (beta_t (v_t - S^T k_t))^T``; ``o_t = S_t^T q_t``. A write
first takes back what the state already answers to its key. With the corrected value
``v'_t = beta_t (v_t - S^T k_t)`` this is gated linear attention, so `corrected` finds those values
and the states, and `read` answers queries from them as `ops.ssd` or `ops.linear_attention` do.

Within a chunk (b the cumulative log-decay) the corrected values solve a unit lower triangular
system, ``(I + L) v' = beta (v - k e^b S)``, where for j < i
``L_ij = beta_i sum_k k_ik k_jk e^(b_ik - b_jk)``. Its inverse is built by doubling:
``[[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]]`` from single tokens. Products only, so it
compiles and exports, and on a CPU it is as fast as a triangular solve; unlike a series over a whole
chunk it loses nothing on repeated keys. On a GPU `ops.gpu.delta` finds the same, in longer chunks.

Shape suffixes: as in `ops.chunks`; K is 1 in g where a head has one decay; G key heads, each of
which serves N / G heads.
"""

import torch
from torch import Tensor

from archloop.blocks.ops import linear_attention, ssd, triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import LONG_CHUNK, chunk_size, join, padded_time, split
from archloop.blocks.ops.precision import exact

CHUNK = 32
"""Half that of the other forms: the inverse and its use grow with the chunk."""
WIDEST_KERNEL = 128
"""Key and value widths that fit a program's registers."""
LEAF = linear_attention.LEAF


def naive(
    q_BNTK: Tensor,
    k_BNTK: Tensor,
    v_BNTV: Tensor,
    beta_BNT: Tensor,
    g_BNTK: Tensor,
    initial_BNKV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The plain form: outputs (B, N, T, V) and the final state, token by token."""
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
    state_BNKV = g_BNK.exp()[..., None] * state_BNKV
    k_BNK, v_BNV, beta_BN = (x.to(state_BNKV.dtype) for x in (k_BNK, v_BNV, beta_BN))
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
    # Where keys repeat, the matrix is nearly singular: factors rounded to bfloat16 would give quite
    # another inverse.
    with exact(g_BNTK):
        return _corrected(k_BGTK, v_BNTV, beta_BNT, g_BNTK, initial_BNKV)


def _corrected(
    k_BGTK: Tensor, v_BNTV: Tensor, beta_BNT: Tensor, g_BNTK: Tensor, initial_BNKV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    k_BNTK = ssd.to_heads(k_BGTK, v_BNTV.shape[1])
    (batch, heads, time, _), dtype = k_BNTK.shape, g_BNTK.dtype
    chunk = chunk_size(time, CHUNK, LEAF)
    k, v, g = (split(x.to(dtype), chunk) for x in (k_BNTK, v_BNTV, g_BNTK))
    beta_BNnC1 = split(beta_BNT.to(dtype), chunk)[..., None]
    scores_BNnCC, asked_BNnCK, keys_BNnCK, decay_BNn1K = _key_scores(k, g)
    solve_BNnCC = unit_lower_inverse(beta_BNnC1 * scores_BNnCC) * beta_BNnC1.transpose(3, 4)
    if initial_BNKV is None:
        initial_BNKV = v.new_zeros(batch, heads, k.shape[-1], v.shape[-1])
    state_XKV = initial_BNKV.flatten(0, 1)
    parts = (v, asked_BNnCK, solve_BNnCC, keys_BNnCK.transpose(3, 4), decay_BNn1K.transpose(3, 4))
    before, values = [], []
    # The heads of all sequences in one dimension: `bmm` takes them as they are.
    for wanted, asked, solve, keys, decay in zip(
        *(x.flatten(0, 1).unbind(1) for x in parts), strict=True
    ):
        before.append(state_XKV)
        values.append(solve.bmm(torch.baddbmm(wanted, asked, state_XKV, alpha=-1)))
        state_XKV = torch.baddbmm(decay * state_XKV, keys, values[-1])
    values_BNnCV, states_BNnKV, final_BNKV = (
        x.unflatten(0, (batch, heads))
        for x in (torch.stack(values, 1), torch.stack(before, 1), state_XKV)
    )
    return join(values_BNnCV, time), states_BNnKV, final_BNKV


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


def _key_scores(k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`linear_attention.chunk_scores` between keys, whether decays are per head or per channel."""
    if g.shape[-1] > 1:
        return linear_attention.chunk_scores(k, k, g, diagonal=False)
    ratios_BNnCC, since_BNnC, until_BNnC = ssd.decay_ratios(g[..., 0], -1)
    scores_BNnCC, since_BNnC1 = (k @ k.transpose(3, 4)) * ratios_BNnCC, since_BNnC[..., None]
    return scores_BNnCC, k * since_BNnC1, k * until_BNnC[..., None], since_BNnC1[:, :, :, -1:]


def unit_lower_inverse(lower_XCC: Tensor) -> Tensor:
    """``(I + L)^-1``, (..., C, C), for strictly lower triangular L of at least 2 rows."""
    negative_XCC = -lower_XCC
    corner = _corners(negative_XCC, 1)
    one = torch.ones_like(corner)
    inverse = linear_attention.lower_blocks(one, corner, one)
    while (half := inverse.shape[-1]) < lower_XCC.shape[-1]:
        left, right = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = right @ _corners(negative_XCC, half) @ left
        inverse = linear_attention.lower_blocks(left, corner, right)
    return inverse[..., 0, :, :]


def _corners(lower_XCC: Tensor, half: int) -> Tensor:
    """(..., C/2h, h, h): lower left quarter of each block of 2h rows along the diagonal."""
    pairs = lower_XCC.shape[-1] // (2 * half)
    blocks: Tensor = lower_XCC.unflatten(-1, (pairs, 2, half)).unflatten(-4, (pairs, 2, half))
    corners = blocks[..., 1, :, :, 0, :]
    if torch.compiler.is_exporting():
        # The same by a stride: OpenVINO misreads what a diagonal becomes in ONNX.
        return corners.transpose(-3, -2).flatten(-4, -3)[..., :: pairs + 1, :, :]
    return corners.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def corrected_flops(time: int, key_width: int, value_width: int, *, vector: bool) -> int:
    """FLOPs of `corrected` for one head, with a decay per key channel or per head."""
    chunk = chunk_size(time, CHUNK, LEAF)
    padded = padded_time(time, chunk)
    if vector:
        scores = padded * linear_attention.scores_flops(chunk, key_width, diagonal=False)
    else:
        scores = padded * 2 * chunk * key_width
    # Two products of h x h blocks for each of C/2h pairs: 2 C h^2, over h = 2, 4, ..., C/2.
    inverse = padded * 2 * (chunk**2 - 4) // 3
    apply = 2 * padded * chunk * value_width
    carried = 4 * padded * key_width * value_width
    return scores + inverse + apply + carried


def read_flops(
    time: int, key_width: int, value_width: int, heads_per_key: int = 1, *, vector: bool
) -> int:
    """FLOPs of `read` for one key head; with a decay a head its value heads share the scores."""
    if vector:
        head = linear_attention.read_flops(time, key_width, value_width, largest=CHUNK)
        return heads_per_key * head
    return ssd.read_flops(time, key_width, value_width, heads_per_key, largest=CHUNK, smallest=LEAF)


def advance_flops(key_width: int, value_width: int) -> int:
    """FLOPs of `advance` for one head."""
    return 5 * key_width * value_width
