"""The selective state space of Mamba: a diagonal recurrence whose decays depend on the input.

``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t``, ``y_t = C_t h_t`` (arXiv 2312.00752, algorithm 2, with
Euler's input term as in the authors' code). The states of all tokens are N times the input, so no
form keeps them: the fast forms go chunk by chunk and compute a chunk's states again in backward.

Shape suffixes: B batch, T time, D channels, N states per channel.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import tokens_at_once
from archloop.blocks.ops.scan import scan

CHUNK = 64


def naive_selective_scan(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    a_DN: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    start_BDN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step at a time. Arguments and result as `selective_scan`."""
    h_BDN = start_BDN
    if h_BDN is None:
        h_BDN = dt_BTD.new_zeros(x_BTD.shape[0], *a_DN.shape)
    outputs = []
    for t in range(x_BTD.shape[1]):
        x_BD, dt_BD = x_BTD[:, t], dt_BTD[:, t]
        h_BDN, y_BD = selective_step(x_BD, dt_BD, a_DN, b_BTN[:, t], c_BTN[:, t], h_BDN)
        outputs.append(y_BD)
    return torch.stack(outputs, 1), h_BDN


def selective_step(
    x_BD: Tensor, dt_BD: Tensor, a_DN: Tensor, b_BN: Tensor, c_BN: Tensor, h_BDN: Tensor
) -> tuple[Tensor, Tensor]:
    """The next state, and the output read from it."""
    pushed_BDN = (dt_BD * x_BD)[..., None] * b_BN[:, None]
    h_BDN = torch.exp(dt_BD[..., None] * a_DN) * h_BDN + pushed_BDN
    return h_BDN, (h_BDN * c_BN[:, None]).sum(-1)


def selective_scan(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    a_DN: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    start_BDN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) and last state (B, D, N).

    Args:
        x_BTD: inputs.
        dt_BTD: time steps, not negative; 0 leaves the state as it is. Its dtype, at least
            float32, is that of the computation and the state.
        a_DN: poles, negative, in dt's dtype.
        b_BTN: input weights.
        c_BTN: output weights.
        start_BDN: the state before the first token; None is zero.
    """
    if start_BDN is None:
        start_BDN = dt_BTD.new_zeros(x_BTD.shape[0], *a_DN.shape)
    if triton_kernels.usable(dt_BTD):
        from archloop.blocks.ops.gpu.selective_scan import SelectiveScan

        y_BTD, last_BDN = apply(SelectiveScan, x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, start_BDN)
        return y_BTD, last_BDN
    h_BDN, outputs = start_BDN, []
    chunk = tokens_at_once(start_BDN.nbytes, CHUNK)
    pieces = (x.to(dt_BTD.dtype).split(chunk, 1) for x in (x_BTD, dt_BTD, b_BTN, c_BTN))
    for x, dt, b, c in zip(*pieces, strict=True):
        if torch.is_grad_enabled():
            y, h_BDN = checkpoint(
                _chunk, x, dt, a_DN, b, c, h_BDN, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y, h_BDN = _chunk(x, dt, a_DN, b, c, h_BDN)
        outputs.append(y)
    return torch.cat(outputs, 1).to(x_BTD.dtype), h_BDN


def _chunk(
    x_BTD: Tensor, dt_BTD: Tensor, a_DN: Tensor, b_BTN: Tensor, c_BTN: Tensor, start_BDN: Tensor
) -> tuple[Tensor, Tensor]:
    decay_BTDN = torch.exp(dt_BTD[..., None] * a_DN)
    pushed_BTDN = (dt_BTD * x_BTD)[..., None] * b_BTN[:, :, None]
    h_BTX = scan(decay_BTDN.flatten(2), pushed_BTDN.flatten(2), start_BDN.flatten(1))
    h_BTDN = h_BTX.view_as(decay_BTDN)
    return torch.einsum("btdn,btn->btd", h_BTDN, c_BTN), h_BTDN[:, -1]
