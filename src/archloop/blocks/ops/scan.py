"""Diagonal linear recurrences ``h_t = a_t * h_{t-1} + b_t``, real or complex, from any start.

The plain reference is a loop that autograd differentiates. The fast forms hold no graph: their
backward is the same recurrence run from the end, ``l_t = g_t + conj(a_{t+1}) l_{t+1}``, from which
every gradient follows in one product. On a CPU a loop over time is as good as any; on a GPU one
Triton kernel scans tiles of time in logarithmic depth.

An exported program takes a third form, in logarithmic depth and without complex numbers, which most
engines lack (`doubled`): a loop over time would be a node a step.

Complex numbers come as pairs (real, imaginary), as parameters and states hold them.

Shape suffixes: B batch, T time, F features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import shifted

Pair = tuple[Tensor, Tensor]
"""Real and imaginary part."""


def naive_scan(a_BTF: Tensor, b_BTF: Tensor, start_BF: Tensor | None = None) -> Tensor:
    """All states ``h_BTF``, one step at a time; real or complex tensors."""
    h_BF = torch.zeros_like(b_BTF[:, 0]) if start_BF is None else start_BF
    states = []
    for a_BF, b_BF in zip(a_BTF.expand_as(b_BTF).unbind(1), b_BTF.unbind(1), strict=True):
        h_BF = torch.addcmul(b_BF, a_BF, h_BF)
        states.append(h_BF)
    return torch.stack(states, 1)


def scan(a_BTF: Tensor, b_BTF: Tensor, start_BF: Tensor | None = None) -> Tensor:
    """All states ``h_BTF`` of a real recurrence.

    Args:
        a_BTF: decays, any shape that broadcasts to b's.
        b_BTF: inputs.
        start_BF: the state before the first input; None is zero.
    """
    a_BTF = a_BTF.expand_as(b_BTF)
    start_BF = torch.zeros_like(b_BTF[:, 0]) if start_BF is None else start_BF
    if torch.compiler.is_exporting():
        return doubled((a_BTF,), (b_BTF,), (start_BF,))[0]
    if triton_kernels.usable(b_BTF):
        from archloop.blocks.ops.gpu.scan import TritonScan

        h_BTF: Tensor = apply(TritonScan, a_BTF, b_BTF, start_BF)
    else:
        h_BTF = apply(_LoopScan, a_BTF, b_BTF, start_BF)
    return h_BTF


def scan_pair(a: Pair, b: Pair, start: Pair | None = None) -> Pair:
    """All states of a complex recurrence, in pairs of tensors shaped as in `scan`."""
    a = (a[0].expand_as(b[0]), a[1].expand_as(b[1]))
    if start is None:
        start = (torch.zeros_like(b[0][:, 0]), torch.zeros_like(b[1][:, 0]))
    if torch.compiler.is_exporting():
        re_BTF, im_BTF = doubled(a, b, start)
        return re_BTF, im_BTF
    if triton_kernels.usable(b[0]):
        from archloop.blocks.ops.gpu.scan import TritonScanPair

        re_BTF, im_BTF = apply(TritonScanPair, *a, *b, *start)
        return re_BTF, im_BTF
    h_BTF = apply(_LoopScan, torch.complex(*a), torch.complex(*b), torch.complex(*start))
    return h_BTF.real, h_BTF.imag


def doubled(
    a: tuple[Tensor, ...], b: tuple[Tensor, ...], start: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """All states: each round joins what two neighbouring spans of steps do, of twice the length.

    Args:
        a: decays (B, T, F), one tensor if they are real, two if they are complex.
        b: inputs, likewise.
        start: the state before the first input (B, F), likewise.
    """
    first = _times(tuple(part[:, :1] for part in a), tuple(part[:, None] for part in start))
    b = tuple(
        torch.cat([part[:, :1] + added, part[:, 1:]], 1)
        for part, added in zip(b, first, strict=True)
    )
    length = 1
    while length < b[0].shape[1]:
        # Before the first step there is nothing: decay 1, input 0.
        added = _times(a, tuple(F.pad(part[:, :-length], (0, 0, length, 0)) for part in b))
        b = tuple(part + more for part, more in zip(b, added, strict=True))
        ones = (1.0, 0.0)
        a = _times(
            a,
            tuple(
                F.pad(part[:, :-length], (0, 0, length, 0), value=one)
                for part, one in zip(a, ones, strict=False)
            ),
        )
        length *= 2
    return b


def _times(x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Products of real numbers, or of complex ones in pairs."""
    if len(x) == 1:
        return (x[0] * y[0],)
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


class _LoopScan(torch.autograd.Function):
    """The loop over time without a graph."""

    @staticmethod
    def forward(ctx: Any, a_BTF: Tensor, b_BTF: Tensor, start_BF: Tensor) -> Tensor:
        h_BTF = b_BTF.clone(memory_format=torch.contiguous_format)
        before_BF = start_BF
        for a_BF, h_BF in zip(a_BTF.unbind(1), h_BTF.unbind(1), strict=True):
            before_BF = h_BF.addcmul_(a_BF, before_BF)
        ctx.save_for_backward(a_BTF, h_BTF, start_BF)
        return h_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a_BTF, h_BTF, start_BF = ctx.saved_tensors
        (grad_BTF,) = grads
        a_steps = a_BTF.conj().resolve_conj().unbind(1)
        back_BTF = grad_BTF.clone(memory_format=torch.contiguous_format)
        back_steps = back_BTF.unbind(1)
        for t in range(len(a_steps) - 2, -1, -1):
            back_steps[t].addcmul_(a_steps[t + 1], back_steps[t + 1])
        grad_a_BTF = back_BTF * shifted(h_BTF, start_BF).conj()
        return grad_a_BTF, back_BTF, a_steps[0] * back_steps[0]
