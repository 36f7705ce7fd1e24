"""Kernels of the short convolution, and of skip, gate and norm, equal their plain forms."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from accelerator import DEVICE, DTYPES
from archloop.blocks.ops import conv
from archloop.blocks.ops.skip_gate_norm import skip_gate_norm

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def compare(form: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> None:
    results = []
    for kind in (dtype, torch.float64):
        leaves = [x.to(dtype).to(kind).detach().requires_grad_() for x in inputs]
        y = form(*leaves)
        weights = torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape).to(dtype).to(kind)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, weights)])
    for fast, plain in zip(*results, strict=True):
        assert float((fast.double() - plain).norm() / plain.norm()) < ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("time", [1, 2, 37, 300])
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_activated_conv(dtype: torch.dtype, time: int, kernel: int) -> None:
    past = randn(2, kernel - 1, 72).to(dtype)

    def form(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        activated, rest = conv.activated_conv(x, weight, bias, past.to(x.dtype))
        return torch.cat([activated, 2 * rest], -1)

    compare(form, [randn(2, time, 80), randn(72, kernel), randn(72)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("time", [1, 2, 300])
def test_plain_conv(dtype: torch.dtype, time: int) -> None:
    compare(conv.causal_conv, [randn(2, time, 72), randn(72, 4)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_skip_gate_norm(dtype: torch.dtype, groups: int) -> None:
    def form(o: Tensor, x: Tensor, skip: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        return skip_gate_norm(o, x[..., 8:], skip, gate, weight, groups, 1e-5)

    inner, heads = 96, 4
    row = randn(2, 45, inner)
    compare(
        form, [row, randn(2, 45, inner + 8), randn(heads), randn(*row.shape), randn(inner)], dtype
    )
