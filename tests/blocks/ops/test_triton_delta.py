"""The delta rule's kernels against the plain form in float64: values, states and every gradient.

Runs on a CUDA device, or under Triton's interpreter: ``TRITON_INTERPRET=1 pytest -m gpu``. Triton
3.4 to 3.7 can compile such kernels wrongly for Hopper, for some shapes only; hence this many.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from accelerator import DEVICE, DTYPES, INTERPRETED
from archloop.blocks.ops import delta_rule, linear_attention, ssd
from archloop.blocks.ops.gpu.delta import CHUNK, Corrected

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

ERROR = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
# batch, key heads, value heads to a key head, time, key width, value width
SHAPES = [
    (1, 1, 1, 1, 64, 64),
    (2, 2, 2, 17, 32, 32),
    (4, 1, 2, 64, 64, 64),
    (1, 2, 1, 65, 128, 128),
    (1, 1, 3, 300, 20, 24),
    (2, 1, 2, 300, 64, 128),
]
LONG = [] if INTERPRETED else [(1, 2, 2, 4097, 64, 64), (1, 1, 2, 4097, 128, 128)]


def inputs(
    shape: tuple[int, ...], vector: bool, strength: float, top_beta: float, dtype: torch.dtype
) -> list[Tensor]:
    """Keys, values, strengths, log-decays and a state, laid out as projections leave them."""
    batch, groups, sharing, time, key_width, value_width = shape
    heads = groups * sharing

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=torch.float64, device=DEVICE)

    k = F.normalize(draw(batch, time, groups, key_width), dim=-1).transpose(1, 2)
    v = draw(batch, time, heads, value_width).transpose(1, 2)
    beta = top_beta * draw(batch, time, heads).sigmoid().transpose(1, 2)
    width = key_width if vector else 1
    g = strength * F.logsigmoid(draw(batch, time, heads, width)).transpose(1, 2)
    initial = draw(batch, heads, key_width, value_width)
    low = [k.to(dtype), v.to(dtype), *(x.float() for x in (beta, g, initial))]
    return [x.requires_grad_() for x in low]


def plain(
    k: Tensor, v: Tensor, beta: Tensor, g: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token, from the definition."""
    k, state = ssd.to_heads(k, v.shape[1]), initial
    values, before = [], []
    for t in range(k.shape[2]):
        if t % CHUNK == 0:
            before.append(state)
        state = g[:, :, t].exp()[..., None] * state
        error = v[:, :, t] - linear_attention.query(state, k[:, :, t])
        values.append(beta[:, :, t, None] * error)
        state = state + k[:, :, t, :, None] * values[-1][..., None, :]
    return torch.stack(values, 2), torch.stack(before, 2), state


def compare(parts: list[Tensor], error: float) -> None:
    exact = [x.detach().double().requires_grad_() for x in parts]
    found = Corrected.apply(*parts)  # type: ignore[no-untyped-call]
    expected = plain(*exact)
    weights = [torch.randn_like(x) for x in expected]
    gradients = [
        torch.autograd.grad(
            sum((x * w.to(x.dtype)).sum() for x, w in zip(outputs, weights, strict=True)), leaves
        )
        for outputs, leaves in ((found, parts), (expected, exact))
    ]
    assert found[2].dtype == torch.float32
    for a, b in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        gap = (a.double() - b).detach().norm() / b.detach().norm().clamp(min=1)
        assert gap < error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=lambda s: "-".join(map(str, s)))
def test_equals_the_recurrence(shape: tuple[int, ...], vector: bool, dtype: torch.dtype) -> None:
    compare(inputs(shape, vector, 0.1, 1.0, dtype), ERROR[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("strength", [0.0, 1000.0])
def test_strong_and_absent_gates_and_writes_up_to_two(
    strength: float, vector: bool, dtype: torch.dtype
) -> None:
    compare(inputs((1, 1, 2, 150, 64, 64), vector, strength, 2.0, dtype), ERROR[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
def test_weak_decays_after_resets(vector: bool, dtype: torch.dtype) -> None:
    parts = inputs((1, 1, 2, 150, 64, 64), vector, 0.1, 1.0, dtype)
    g = parts[3].detach()
    parts[3] = torch.where(torch.rand_like(g) < 0.03, -1e5, g).requires_grad_()
    # A weak decay is a difference of sums to some hundreds, each rounded at its 24th digit.
    compare(parts, max(ERROR[dtype], 2e-5))


@pytest.mark.skipif(INTERPRETED, reason="dispatch asks for a CUDA device")
@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
def test_read_takes_the_longer_chunks(vector: bool) -> None:
    k, v, beta, g, initial = inputs((2, 1, 2, 100, 32, 32), vector, 0.1, 1.0, torch.float32)
    q = torch.randn_like(k)
    values, before, final = delta_rule.corrected(k, v, beta, g, initial)
    assert before.shape[2] == 2
    found = delta_rule.read(q, k, values, g, before), final
    parts = [ssd.to_heads(x, 2).double() for x in (q, k)] + [x.double() for x in (v, beta, g)]
    for a, b in zip(found, delta_rule.naive(*parts, initial.double()), strict=True):
        assert (a.double() - b).norm() < 2e-6 * b.norm()
