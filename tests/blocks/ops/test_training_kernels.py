"""Kernels that a training step uses everywhere equal their plain forms, forward and back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from accelerator import DEVICE, DTYPES
from archloop.blocks.ops.decay_gate import step_size
from archloop.blocks.ops.gated_conv import gated_conv
from archloop.blocks.ops.linear_cross_entropy import linear_cross_entropy
from archloop.blocks.ops.norm import add_norm, rms_norm
from archloop.blocks.ops.norm_rotate import norm_rotate
from archloop.blocks.ops.silu_gate import silu_gate
from archloop.blocks.ops.skip_gate import skip_gate

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def compare(form: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Outputs and gradients of a form in `dtype` and in float64, which has no kernel."""
    results = []
    for kind in (dtype, torch.float64):
        leaves = [x.to(dtype).to(kind).detach().requires_grad_() for x in inputs]
        y = form(*leaves)
        weights = torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape).to(dtype).to(kind)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, weights)])
    for fast, plain in zip(*results, strict=True):
        assert float((fast.double() - plain).norm() / plain.norm()) < ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 72, 512])
@pytest.mark.parametrize("rows", [1, 45])
def test_rms_norm(dtype: torch.dtype, width: int, rows: int) -> None:
    compare(lambda x, w: rms_norm(x, w, 1e-5), [randn(2, rows, width), randn(width)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("width", [72, 512])
def test_add_norm(dtype: torch.dtype, carried: bool, width: int) -> None:
    def form(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        summed, normed = add_norm(x, y, w, 1e-5)
        return torch.cat([summed, 3 * normed], -1) if carried else 3 * normed

    compare(form, [randn(3, 45, width), randn(3, 45, width), randn(width)], dtype)


@pytest.mark.skipif(torch.bfloat16 not in DTYPES, reason="the interpreter knows no bfloat16")
def test_a_float32_stream_takes_a_bfloat16_addition() -> None:
    x, y, w = randn(5, 64), randn(5, 64).bfloat16(), randn(64)
    leaves = [t.detach().requires_grad_() for t in (x, y, w)]
    with torch.autocast("cuda", torch.bfloat16):
        summed, normed = add_norm(*leaves, 1e-5)
    assert (summed.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    grads = torch.autograd.grad(summed.sum() + normed.float().square().sum(), leaves)
    assert [g.dtype for g in grads] == [torch.float32, torch.bfloat16, torch.float32]
    assert torch.equal(grads[0].bfloat16(), grads[1])
    torch.testing.assert_close(summed, x + y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [8, 136, 300])
def test_silu_gate(dtype: torch.dtype, hidden: int) -> None:
    compare(silu_gate, [randn(3, 37, 2 * hidden)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 136, 600])
def test_skip_gate(dtype: torch.dtype, width: int) -> None:
    rows = [randn(3, 37, width) for _ in range(3)]
    compare(lambda y, x, s, z: skip_gate(y, x, s, z), [*rows[:2], randn(width), rows[2]], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_size(dtype: torch.dtype) -> None:
    compare(step_size, [randn(3, 37, 72), randn(72)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("time", [1, 2, 37, 300])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_gated_conv(dtype: torch.dtype, time: int, kernel: int) -> None:
    compare(gated_conv, [randn(2, time, 3 * 72), randn(72, kernel)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("theta", [None, 1e4])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("time", [1, 45])
def test_norm_rotate(dtype: torch.dtype, theta: float | None, norm: bool, time: int) -> None:
    heads, head_dim = 3, 24
    start = torch.tensor([[0], [700]], device=DEVICE)
    positions = start + torch.arange(time, device=DEVICE)

    def form(x: Tensor, w: Tensor) -> Tensor:
        part = x[..., 8 : 8 + heads * head_dim]
        out = norm_rotate(part, heads, w if norm else None, 1e-5, positions, theta)
        return out if norm else out * w  # either way w has a gradient

    compare(form, [randn(2, time, 96), randn(head_dim)], dtype)


def test_positions_may_be_shared_by_all_rows() -> None:
    x = randn(4, 9, 48)
    positions = torch.arange(9, device=DEVICE).expand(4, 9)
    found = norm_rotate(x, 2, None, 0.0, positions, 1e4)
    expected = norm_rotate(x.double(), 2, None, 0.0, positions, 1e4)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [20, 1000, 9001])
@pytest.mark.parametrize("divisor", [1.0, 8.0])
def test_linear_cross_entropy(
    dtype: torch.dtype, vocab: int, divisor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three chunks, the last of another size.
    monkeypatch.setattr(
        "archloop.blocks.ops.linear_cross_entropy.CHUNK_BYTES", 20 * vocab * dtype.itemsize
    )
    hidden, weight = randn(47, 32), randn(vocab, 32)
    targets = torch.randint(vocab, (47,), device=DEVICE)
    targets[::5] = -100

    def fast(h: Tensor, w: Tensor) -> Tensor:
        return 2 * linear_cross_entropy(h, w, targets, divisor, -100)

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return 2 * F.cross_entropy(h @ w.T / divisor, targets)

    compare(
        lambda h, w: (plain if h.dtype == torch.float64 else fast)(h, w)[None],
        [hidden, weight],
        dtype,
    )
