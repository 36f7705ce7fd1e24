"""Causal depthwise convolution over time: a window of K inputs, of which K-1 are state.

Shape suffixes: B batch, T time, D channels, K kernel, L = K-1 past inputs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply


def causal_conv(
    x_BTD: Tensor,
    weight_DK: Tensor,
    past_BLD: Tensor | None = None,
    segments_BT: Tensor | None = None,
) -> Tensor:
    """``y_t = sum_j weight[:, K-1-j] * x_{t-j}`` with zeros, or `past_BLD`, before the start.

    Inputs of another packed sequence count as zeros. Written as K shifted products, which on a
    CPU beats a grouped convolution at the kernel sizes that blocks use. On a GPU it is one kernel.
    """
    if segments_BT is None and triton_kernels.usable(x_BTD, torch.float32, torch.bfloat16):
        from archloop.blocks.ops.gpu.conv import CausalConv

        y_BTD: Tensor = apply(CausalConv, x_BTD, weight_DK, None, past_BLD, False)[0]
        return y_BTD
    kernel = weight_DK.shape[1]
    time = x_BTD.shape[1]
    padded_BSD = prepend_past(x_BTD, past_BLD, kernel - 1)
    y_BTD = x_BTD * weight_DK[:, -1]
    for back in range(1, kernel):
        start = kernel - 1 - back
        earlier_BTD = padded_BSD[:, start : start + time]
        if segments_BT is not None:
            same_BT = torch.zeros_like(segments_BT, dtype=torch.bool)
            same_BT[:, back:] = segments_BT[:, back:] == segments_BT[:, : max(time - back, 0)]
            earlier_BTD = earlier_BTD * same_BT[..., None]
        y_BTD.addcmul_(earlier_BTD, weight_DK[:, start])
    return y_BTD


def activated_conv(
    x_BTE: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    past_BLD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``silu(causal_conv(x) + bias)`` of the first D channels, and the other channels as they are.

    One projection may thus make both, and its gradient is written once.
    """
    if triton_kernels.usable(x_BTE, torch.float32, torch.bfloat16):
        from archloop.blocks.ops.gpu.conv import CausalConv

        activated_BTD, rest = apply(CausalConv, x_BTE, weight_DK, bias_D, past_BLD, True)
        return activated_BTD, rest
    x_BTD, rest = x_BTE.tensor_split([weight_DK.shape[0]], -1)
    y_BTD = causal_conv(x_BTD, weight_DK, past_BLD)
    return F.silu(y_BTD if bias_D is None else y_BTD + bias_D), rest


def causal_conv_step(x_BD: Tensor, weight_DK: Tensor, past_BLD: Tensor) -> Tensor:
    """One token of `causal_conv`; does not touch `past_BLD`."""
    window_BKD = torch.cat([past_BLD.to(x_BD.dtype), x_BD[:, None]], 1)
    return (window_BKD * weight_DK.T).sum(1)


def prepend_past(x_BTD: Tensor, past_BLD: Tensor | None, num_past: int) -> Tensor:
    """The inputs with the `num_past` inputs before them (zeros without a state)."""
    if past_BLD is None:
        past_BLD = x_BTD.new_zeros(x_BTD.shape[0], num_past, x_BTD.shape[2])
    return torch.cat([past_BLD.to(x_BTD.dtype), x_BTD], 1)


def advance_past(past_BLD: Tensor, x_BTD: Tensor, lengths_B: Tensor | None = None) -> None:
    """Move the window of past inputs, in place, to after each row's last real token."""
    num_past = past_BLD.shape[1]
    window_BSD = torch.cat([past_BLD, x_BTD.to(past_BLD.dtype)], 1)
    if lengths_B is None:
        past_BLD.copy_(window_BSD[:, window_BSD.shape[1] - num_past :])
        return
    at_BL = lengths_B[:, None] + torch.arange(num_past, device=x_BTD.device)
    past_BLD.copy_(window_BSD.gather(1, at_BL[..., None].expand(-1, -1, x_BTD.shape[2])))
