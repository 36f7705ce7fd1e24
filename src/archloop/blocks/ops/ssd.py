"""Linear attention with one decay per head: Mamba-2's SSD (arXiv 2405.21060), Gated DeltaNet.

``S_t = exp(g_t) S_{t-1} + k_t v_t^T``; ``o_t = S_t^T q_t``, with log-decays g <= 0. Heads of a
group share queries and keys. Because the decay is a scalar, a chunk is plain attention whose scores
are multiplied by what is left of token j's write at token i (`decay_ratios`: products of decays,
none above 1). As in `ops.linear_attention`, the parallel form has two halves, `states` and `read`.

Everything is computed in the dtype of g: at least float32. On a GPU, kernels of our own do the same
(`gpu.ssd_states`, `gpu.ssd_read`), with dtypes as in `ops.linear_attention`.

Shape suffixes: as in `ops.chunks`; G groups, N = G R heads.
"""

import torch
from torch import Tensor

from archloop.blocks.ops import linear_attention
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import (
    carry,
    chunk_size,
    decays_to_end,
    join,
    padded_time,
    split,
)

CHUNK = 64


def naive(
    q_BGTK: Tensor, k_BGTK: Tensor, v_BNTV: Tensor, g_BNT: Tensor, initial_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The plain form: outputs (B, N, T, V) and the final state, token by token."""
    heads = v_BNTV.shape[1]
    q_BNTK, k_BNTK = (to_heads(x, heads) for x in (q_BGTK, k_BGTK))
    return linear_attention.naive(q_BNTK, k_BNTK, v_BNTV, g_BNT[..., None], initial_BNKV)


def states(
    k_BGTK: Tensor,
    v_BNTV: Tensor,
    g_BNT: Tensor,
    initial_BNKV: Tensor | None,
    weight_BNT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """State before each chunk, (B, G, n, K, R, V), and after the last token, (B, N, K, V).

    `weight_BNT` multiplies each token's value (Mamba-2's time step dt); None means 1.
    """
    groups, heads = k_BGTK.shape[1], v_BNTV.shape[1]
    if linear_attention.on_gpu(g_BNT, k_BGTK, v_BNTV):
        from archloop.blocks.ops.gpu.carry import SMALLEST_CHUNK
        from archloop.blocks.ops.gpu.ssd_states import States

        chunk = chunk_size(k_BGTK.shape[2], CHUNK, SMALLEST_CHUNK)
        states_BNnKV, final_BNKV = apply(
            States, k_BGTK, v_BNTV, g_BNT, weight_BNT, initial_BNKV, chunk
        )
        return states_BNnKV.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2, 5), final_BNKV
    if weight_BNT is not None:
        v_BNTV = v_BNTV * weight_BNT[..., None]
    chunk = chunk_size(k_BGTK.shape[2], CHUNK)
    k, v, g = (split(x.to(g_BNT.dtype), chunk) for x in (k_BGTK, v_BNTV, g_BNT))
    kept_BNnC, decay_BNn1 = decays_to_end(g)
    v = v * kept_BNnC[..., None]
    # The heads of a group stand side by side in one product with the keys that they share.
    v_BGnCRV = v.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2, 5)
    added = k.transpose(3, 4) @ v_BGnCRV.flatten(4)
    added_BGnKRV = added.unflatten(4, v_BGnCRV.shape[4:])
    decay_BGnR = decay_BNn1[..., 0].unflatten(1, (groups, -1)).transpose(2, 3)
    initial = None
    if initial_BNKV is not None:
        initial = initial_BNKV.unflatten(1, (groups, -1)).transpose(2, 3)
    before_BGnKRV, final_BGKRV = carry(decay_BGnR[..., None, :, None], added_BGnKRV, initial)
    final_BNKV = final_BGKRV.transpose(2, 3).reshape(-1, heads, *added_BGnKRV.shape[3::2])
    return before_BGnKRV, final_BNKV


def read(
    q_BGTK: Tensor,
    k_BGTK: Tensor,
    v_BNTV: Tensor,
    g_BNT: Tensor,
    states_BGnKRV: Tensor,
    largest: int = CHUNK,
    smallest: int = 1,
    weight_BNT: Tensor | None = None,
    diagonal: int = 0,
) -> Tensor:
    """Outputs (B, N, T, V), given the state before each chunk, the sizes of these and the weights
    of the values. With diagonal -1 a token does not read what it adds itself.
    """
    groups, time = q_BGTK.shape[1:3]
    if linear_attention.on_gpu(g_BNT, q_BGTK, k_BGTK, v_BNTV):
        from archloop.blocks.ops.gpu.carry import SMALLEST_CHUNK
        from archloop.blocks.ops.gpu.ssd_read import Read

        chunk = chunk_size(time, largest, SMALLEST_CHUNK)
        states_BNnKV = states_BGnKRV.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        inputs = q_BGTK, k_BGTK, v_BNTV, g_BNT, weight_BNT, states_BNnKV
        o_BNTV: Tensor = apply(Read, *inputs, chunk, diagonal)
        return o_BNTV
    if weight_BNT is not None:
        v_BNTV = v_BNTV * weight_BNT[..., None]
    chunk = chunk_size(time, largest, smallest)
    q, k, v, g = (split(x.to(g_BNT.dtype), chunk) for x in (q_BGTK, k_BGTK, v_BNTV, g_BNT))
    ratios_BNnCC, since_BNnC, _ = decay_ratios(g, diagonal)
    from_state = (q @ states_BGnKRV.flatten(4)).unflatten(4, states_BGnKRV.shape[4:])
    from_state = from_state.permute(0, 1, 4, 2, 3, 5).flatten(1, 2) * since_BNnC[..., None]
    scores_BG1nCC = (q @ k.transpose(3, 4))[:, :, None]
    scores = (scores_BG1nCC * ratios_BNnCC.unflatten(1, (groups, -1))).flatten(1, 2)
    return join(from_state + scores @ v, time)


def decay_ratios(g_XC: Tensor, diagonal: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """How much of what each token writes each later one still finds in a chunk.

    Put together from halves, as products of what decays until their border and from there on.
    Differences of cumulative sums would round weak decays that follow strong ones, and the
    gradients of strong ones would be what two equal numbers leave of each other.

    Returns:
        ``exp(g_{j+1} + .. + g_i)`` for j up to a diagonal (0 or -1), 0 above it, (..., C, C); the
        decay since the chunk's start and from behind a token to its end, (..., C) each.
    """
    since = g_XC.exp()[..., None]
    until = torch.ones_like(since)
    ratios = torch.full_like(since, 1 + diagonal)[..., None]
    while ratios.shape[-3] > 1:
        left, right = linear_attention.halves(ratios)
        since_left, since_right = linear_attention.halves(since, -2)
        until_left, until_right = linear_attention.halves(until, -2)
        corner = since_right[..., None] * until_left[..., None, :]
        ratios = linear_attention.lower_blocks(left, corner, right)
        since = torch.cat([since_left, since_right * since_left[..., -1:]], -1)
        until = torch.cat([until_left * since_right[..., -1:], until_right], -1)
    return ratios[..., 0, :, :], since[..., 0, :], until[..., 0, :]


def to_heads(x_BGTK: Tensor, num_heads: int) -> Tensor:
    """Each group's vectors for each of its heads (a view where a group is a head)."""
    groups = x_BGTK.shape[1]
    if groups == num_heads:
        return x_BGTK
    return x_BGTK.repeat_interleave(num_heads // groups, 1)


def states_flops(time: int, key_width: int, value_width: int) -> int:
    """FLOPs of `states` for one head."""
    chunk = chunk_size(time, CHUNK)
    padded = padded_time(time, chunk)
    return (2 * padded + 2 * padded // chunk) * key_width * value_width


def read_flops(
    time: int,
    key_width: int,
    value_width: int,
    heads_per_group: int = 1,
    largest: int = CHUNK,
    smallest: int = 1,
) -> int:
    """FLOPs of `read` for one group: its heads share the scores."""
    chunk = chunk_size(time, largest, smallest)
    padded = padded_time(time, chunk)
    head = 2 * padded * key_width * value_width + padded * chunk * (1 + 2 * value_width)
    return 2 * padded * chunk * key_width + heads_per_group * head
