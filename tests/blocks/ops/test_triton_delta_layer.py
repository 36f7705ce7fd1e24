"""Kernels around the delta rule equal the plain forms in float64, with every gradient."""

import pytest
import torch
from torch import Tensor

from accelerator import DEVICE, DTYPES
from archloop.blocks.ops import unit_conv as plain_conv
from archloop.blocks.ops.bounded_gate import bounded_gate
from archloop.blocks.ops.decay_gate import decay_gate
from archloop.blocks.ops.gated_norm import Activation, gated_norm
from archloop.blocks.ops.gpu.bounded_gate import BoundedGate
from archloop.blocks.ops.gpu.decay_gate import DecayGate
from archloop.blocks.ops.gpu.gated_norm import GatedNorm
from archloop.blocks.ops.gpu.unit_conv import UnitConv
from archloop.blocks.ops.heads import join_heads

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

ERROR = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_()


def compare(
    found: list[Tensor], expected: list[Tensor], leaves: list[Tensor], exact: list[Tensor]
) -> None:
    weights = [torch.randn_like(x) for x in expected]
    gradients = [
        torch.autograd.grad(
            sum((x * w.to(x.dtype)).sum() for x, w in zip(outputs, weights, strict=True)), inputs
        )
        for outputs, inputs in ((found, leaves), (expected, exact))
    ]
    for a, b in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= ERROR[leaves[0].dtype] * b.norm()


def in_double(leaves: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in leaves]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch,time,key_heads,value_heads,width,kernel", [
    (1, 1, 1, 1, 64, 4), (2, 37, 1, 2, 24, 4), (1, 300, 2, 2, 32, 2), (2, 65, 1, 3, 128, 4),
])  # fmt: skip
def test_unit_conv(
    batch: int, time: int, key_heads: int, value_heads: int, width: int, kernel: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    channels = (2 * key_heads + value_heads) * width
    leaves = [randn(batch, time, channels, dtype=dtype), randn(channels, kernel, dtype=dtype)]
    past = randn(batch, kernel - 1, channels, dtype=dtype).detach()
    exact, sizes = in_double(leaves), (key_heads, width)
    for before in (None, past):
        held = None if before is None else before.clone()
        found = UnitConv.apply(*leaves, held, *sizes, plain_conv.LENGTH_EPS)
        if held is not None:
            held.zero_()  # a state is written in place before gradients are asked for
        exact_past = None if before is None else before.double()
        expected = [join_heads(x) for x in plain_conv.unit_conv(*exact, exact_past, *sizes)]
        compare(list(found), expected, leaves, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 20), (2, 37, 3, 64), (1, 5, 2, 300)])
def test_gated_norm(shape: tuple[int, ...], activation: Activation, dtype: torch.dtype) -> None:
    leaves = [randn(*s, dtype=dtype) for s in (shape, shape[-1:], shape)]
    exact = in_double(leaves)
    found = GatedNorm.apply(leaves[0], leaves[1], 1e-6, leaves[2], activation)
    expected = gated_norm(exact[0], exact[1], 1e-6, exact[2], activation)
    compare([found], [expected], leaves, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 37, 100), (3, 700, 64)])
def test_decay_gate(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (8 * torch.randn(*shape, device=DEVICE)).to(dtype).requires_grad_()
    bias = randn(shape[-1], dtype=torch.float32)
    rate = torch.rand(shape[-1], device=DEVICE).requires_grad_()
    leaves = [x, bias, rate]
    exact = in_double(leaves)
    found, expected = DecayGate.apply(*leaves), decay_gate(*exact)
    assert ((found - expected).abs() <= 1e-6 * expected.abs() + 1e-12).all()
    compare([found], [expected], leaves, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", [0.0, 1e-3, 0.75])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 37, 100), (3, 70, 256)])
def test_bounded_gate(shape: tuple[int, ...], bound: float, dtype: torch.dtype) -> None:
    wide = (8 * torch.randn(*shape[:-1], 2 * shape[-1], device=DEVICE)).to(dtype)
    x = wide.chunk(2, -1)[0].requires_grad_()
    (exact,) = in_double([x])
    (keys, decays), (exact_keys, exact_decays) = (
        BoundedGate.apply(x, bound),
        bounded_gate(exact, bound),
    )
    assert ((decays - exact_decays).abs() <= 1e-6 * exact_decays.abs() + 1e-12).all()
    rounding = torch.finfo(dtype).eps + 1e-6
    assert ((keys - exact_keys).abs() <= rounding * exact_keys.abs() + 1e-12).all()
    compare([keys, decays], [exact_keys, exact_decays], [x], [exact])
