"""Softmax attention by PyTorch's kernels, within the limits that these have on a GPU.

Their grids hold a batch on an axis of 65,535 programs; the ones that take a mask want keys for each
query head, or they keep all scores; a single query leaves most of a GPU idle; and sliding windows
have no public name.

Shape suffixes: B batch, T queries, S keys, N query heads, M key and value heads, G query heads of
each, H head width, K key width, V value width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels

MOST_ROWS = 65_535
"""Rows that one launch of a GPU's attention takes."""
WIDEST_FLASH = 256
"""Head width up to which PyTorch has flash attention."""


def attention(
    q_BNTH: Tensor, k_BMSH: Tensor, v_BMSH: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Output of each query, (B, N, T, H); `mask` is True where allowed, None for causal.

    The mask broadcasts to (B, N, T, S), and is the same for all heads.
    """
    rows = q_BNTH.shape[0]
    if q_BNTH.is_cuda and rows > MOST_ROWS:
        parts = []
        for start in range(0, rows, MOST_ROWS):
            part = slice(start, start + MOST_ROWS)
            own = mask
            if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
                own = mask[part]
            parts.append(attention(q_BNTH[part], k_BMSH[part], v_BMSH[part], own, scale))
        return torch.cat(parts)
    if torch.compiler.is_exporting() and mask is not None:
        return _written_out(q_BNTH, k_BMSH, v_BMSH, mask, scale)
    grouped = q_BNTH.shape[1] != k_BMSH.shape[1]
    if grouped and mask is not None and q_BNTH.is_cuda:
        each = q_BNTH.shape[1] // k_BMSH.shape[1]
        k_BMSH, v_BMSH = (kv.repeat_interleave(each, 1) for kv in (k_BMSH, v_BMSH))
        grouped = False
    return F.scaled_dot_product_attention(
        q_BNTH,
        k_BMSH,
        v_BMSH,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=grouped,
    )


def _written_out(
    q_BNTH: Tensor, k_BMSH: Tensor, v_BMSH: Tensor, mask_B1TS: Tensor, scale: float
) -> Tensor:
    """As products and a softmax, between which an engine need not copy the keys and values.

    Query heads are rows of the KV head that they read, which is not repeated for each; and keys are
    transposed right before their product, with which engines fuse that.
    """
    each = q_BNTH.shape[1] // k_BMSH.shape[1]
    # g: a group's heads, one after another, with all their queries.
    q_BMgH = q_BNTH.unflatten(1, (-1, each)).flatten(2, 3)
    scores_BMgS = (q_BMgH * scale) @ k_BMSH.transpose(-1, -2)
    weights_BMgS = scores_BMgS.where(mask_B1TS.repeat(1, 1, each, 1), -torch.inf).softmax(-1)
    y_BNTH: Tensor = (weights_BMgS @ v_BMSH).unflatten(2, (each, -1)).flatten(1, 2)
    return y_BNTH


def attention_step(
    q_BMGK: Tensor, k_BMSK: Tensor, v_BMSV: Tensor, last_B: Tensor, scale: float
) -> Tensor:
    """Output (B, M, G, V) of one query token a row, each of whose heads reads a KV head.

    Args:
        q_BMGK: query heads by the KV head that they read.
        k_BMSK: keys in their slots.
        v_BMSV: values, likewise.
        last_B: the last slot that a row's query sees; it sees all before it, and all slots there
            are if it lies behind them.
        scale: factor on q.k.
    """
    if q_BMGK.is_cuda and not torch.is_grad_enabled():
        # Under autocast queries have fewer bits than a cache that was made outside.
        k_BMSK, v_BMSV = k_BMSK.to(q_BMGK.dtype), v_BMSV.to(q_BMGK.dtype)
        y_BMGV: Tensor = _step_on_gpu(q_BMGK, k_BMSK, v_BMSV, last_B, scale)
        return y_BMGV
    return _masked_step(q_BMGK, k_BMSK, v_BMSV, last_B, scale)


def _masked_step(
    q_BMGK: Tensor, k_BMSK: Tensor, v_BMSV: Tensor, last_B: Tensor, scale: float
) -> Tensor:
    slots_S = torch.arange(k_BMSK.shape[2], device=q_BMGK.device)
    mask_B11S = (slots_S <= last_B[:, None])[:, None, None]
    return attention(q_BMGK, k_BMSK, v_BMSV, mask_B11S, scale)


@torch.library.custom_op("archloop::attention_step", mutates_args=())
def _step_on_gpu(
    q_BMGK: Tensor, k_BMSK: Tensor, v_BMSV: Tensor, last_B: Tensor, scale: float
) -> Tensor:
    """One operator to PyTorch's compiler, which knows no way to split the slots."""
    if triton_kernels.fusible(q_BMGK):
        from archloop.blocks.ops.gpu import step_attention as gpu

        if max(q_BMGK.shape[-1], v_BMSV.shape[-1]) <= gpu.WIDEST:
            return gpu.attention_step(q_BMGK, k_BMSK, v_BMSV, last_B, scale)
    return _masked_step(q_BMGK, k_BMSK, v_BMSV, last_B, scale).contiguous()


@_step_on_gpu.register_fake
def _(q_BMGK: Tensor, k_BMSK: Tensor, v_BMSV: Tensor, last_B: Tensor, scale: float) -> Tensor:
    return q_BMGK.new_empty(*q_BMGK.shape[:3], v_BMSV.shape[-1])


def takes_windows(x: Tensor, rows: int, head_dim: int) -> bool:
    """Whether `window_attention` serves queries of x's device and dtype."""
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and head_dim <= WIDEST_FLASH
        and head_dim % 8 == 0
        and rows <= MOST_ROWS
        and not torch.compiler.is_compiling()
        and torch.backends.cuda.is_flash_attention_available()
    )


def window_attention(
    q_BNTH: Tensor, k_BMTH: Tensor, v_BMTH: Tensor, window: int, scale: float
) -> Tensor:
    """Causal attention over the last `window` tokens, each row from its own start.

    Flash attention knows windows, and skips what lies outside; PyTorch has no public name for it.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BNTH, k_BMTH, v_BMTH))
    time = q.shape[1]
    y_BTNH: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, time, time, 0.0, True, False,
        scale=scale, window_size_left=window - 1, window_size_right=0,
    )[0]  # fmt: skip
    return y_BTNH.transpose(1, 2)
