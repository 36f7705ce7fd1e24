"""A nonlinear recurrent cell with one hidden layer, run over time; exact and sequential.

``z_t = act(p_t + W_r h_{t-1})``, ``o_t = W_o z_t + b``, ``h_t = head(o_t)`` with an elementwise
head that combines k outputs per unit. The recurrence is not linear, so no parallel form is exact;
what the fast form saves is everything that need not be in the loop: slopes of the nonlinearities
are computed for all tokens at once, and each weight's gradient is one product over all tokens.

Shape suffixes: B batch, T time, U hidden width, H units, O = k H outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.autograd import apply

Head = Callable[..., Tensor]
"""``head(o, *parameters) -> h``: (..., O) to (..., H), unit by unit."""


def lecun_tanh(x: Tensor) -> Tensor:
    """``1.7159 tanh(0.666 x)``."""
    return 1.7159 * torch.tanh(0.666 * x)


def cell_step(
    p_BU: Tensor,
    w_r_UH: Tensor,
    w_o_OU: Tensor,
    b_O: Tensor,
    h_BH: Tensor,
    head: Head,
    *more: Tensor,
) -> Tensor:
    """The next hidden state."""
    z_BU = lecun_tanh(p_BU + h_BH @ w_r_UH.T)
    return head(z_BU @ w_o_OU.T + b_O, *more)


def naive_cell_scan(
    p_BTU: Tensor,
    w_r_UH: Tensor,
    w_o_OU: Tensor,
    b_O: Tensor,
    start_BH: Tensor,
    head: Head,
    *more: Tensor,
) -> Tensor:
    """All hidden states, by a loop that autograd differentiates."""
    h_BH, states = start_BH, []
    for p_BU in p_BTU.unbind(1):
        h_BH = cell_step(p_BU, w_r_UH, w_o_OU, b_O, h_BH, head, *more)
        states.append(h_BH)
    return torch.stack(states, 1)


def cell_scan(
    p_BTU: Tensor,
    w_r_UH: Tensor,
    w_o_OU: Tensor,
    b_O: Tensor,
    start_BH: Tensor,
    head: Head,
    *more: Tensor,
) -> Tensor:
    """All hidden states (B, T, H).

    Args:
        p_BTU: what the input adds to the hidden layer, bias included.
        w_r_UH: weights from the last state to the hidden layer.
        w_o_OU: weights from the hidden layer to the head's inputs.
        b_O: their bias.
        start_BH: the state before the first token.
        head: see `Head`.
        more: the head's own parameters.
    """
    h_BTH: Tensor = apply(_CellScan, p_BTU, w_r_UH, w_o_OU, b_O, start_BH, head, *more)
    return h_BTH


class _CellScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        p_BTU: Tensor,
        w_r_UH: Tensor,
        w_o_OU: Tensor,
        b_O: Tensor,
        start_BH: Tensor,
        head: Head,
        *more: Tensor,
    ) -> Tensor:
        h_BH, kept = start_BH, []
        for p_BU in p_BTU.unbind(1):
            z_BU = torch.addmm(p_BU, h_BH, w_r_UH.T).mul_(0.666).tanh_().mul_(1.7159)
            o_BO = torch.addmm(b_O, z_BU, w_o_OU.T)
            h_BH = head(o_BO, *more)
            kept.append((z_BU, o_BO, h_BH))
        z_BTU, o_BTO, h_BTH = (torch.stack(steps, 1) for steps in zip(*kept, strict=True))
        ctx.head = head
        ctx.save_for_backward(w_r_UH, w_o_OU, start_BH, z_BTU, o_BTO, h_BTH, *more)
        return h_BTH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w_r_UH, w_o_OU, start_BH, z_BTU, o_BTO, h_BTH, *more = ctx.saved_tensors
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (o_BTO, *more)]
            again_BTH = ctx.head(*leaves)
            (slope_BTO,) = torch.autograd.grad(again_BTH.sum(), leaves[0], retain_graph=True)
        slope_BTU = 0.666 * (1.7159 - z_BTU.square() / 1.7159)
        back_BH, heads = torch.zeros_like(start_BH), o_BTO.shape[-1] // h_BTH.shape[-1]
        kept = []
        steps = zip(grads[0].unbind(1), slope_BTO.unbind(1), slope_BTU.unbind(1), strict=True)
        for grad_BH, slope_BO, slope_BU in reversed(list(steps)):
            back_BH = back_BH + grad_BH
            o_BO = slope_BO * back_BH.repeat(1, heads)
            p_BU = (o_BO @ w_o_OU).mul_(slope_BU)
            kept.append((back_BH, o_BO, p_BU))
            back_BH = p_BU @ w_r_UH
        all_BTH, o_BTO, p_BTU = (torch.stack(x[::-1], 1) for x in zip(*kept, strict=True))
        before_BTH = torch.cat([start_BH[:, None], h_BTH[:, :-1]], 1)
        head_grads: tuple[Tensor, ...] = ()
        if more:
            head_grads = torch.autograd.grad(again_BTH, leaves[1:], all_BTH)
        return (
            p_BTU,
            torch.einsum("btu,bth->uh", p_BTU, before_BTH),
            torch.einsum("bto,btu->ou", o_BTO, z_BTU),
            o_BTO.sum((0, 1)),
            back_BH,
            None,
            *head_grads,
        )
