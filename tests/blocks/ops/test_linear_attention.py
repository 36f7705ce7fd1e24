"""Chunked linear attention against its plain recurrence: any length, state and gate strength."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import chunks, linear_attention
from archloop.blocks.ops.bounded_gate import bounded_gate

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "mild": lambda x: F.logsigmoid(x) / 16,
    "plain": F.logsigmoid,
    "strong": lambda x: 40 * F.logsigmoid(x - 2),
    "none": torch.zeros_like,
}


def inputs(time: int, gate: str, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    g = GATES[gate](draw(2, 2, time, 6))
    parts = [draw(2, 2, time, 6), draw(2, 2, time, 6), draw(2, 2, time, 5), g, draw(2, 2, 6, 5)]
    return [p.requires_grad_() for p in parts]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    before, final = linear_attention.states(k, v, g, initial)
    return linear_attention.read(q, k, v, g, before), final


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("time", [1, 5, 63, 64, 131])
def test_chunked_equals_recurrence_with_gradients(time: int, gate: str) -> None:
    parts = inputs(time, gate)
    fast, plain = chunked(*parts), linear_attention.naive(*parts)
    losses = []
    for outputs, final in (fast, plain):
        weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64)
        losses.append((outputs.flatten() * weights).sum() + final.sin().sum())
    assert gap(fast[0], plain[0]) < 1e-11
    assert gap(fast[1], plain[1]) < 1e-11
    for a, b in zip(*(torch.autograd.grad(loss, parts) for loss in losses), strict=True):
        assert gap(a, b) < 1e-10


def test_gates_beyond_the_range_of_exp_stay_finite() -> None:
    q, k, v, g, initial = (p.detach().float() for p in inputs(150, "strong"))
    g = (100 * g).requires_grad_()
    outputs, final = chunked(q, k, v, g, initial)
    assert gap(outputs, linear_attention.naive(q, k, v, g, initial)[0]) < 1e-5
    (outputs.sum() + final.sum()).backward()
    assert g.grad is not None
    assert g.grad.isfinite().all()


def test_weak_decays_after_resets() -> None:
    q, k, v, g, initial = (p.detach().float() for p in inputs(150, "mild"))
    parts = (q, k, v, torch.where(g < g.quantile(0.1), -1e5, g), initial)
    exact = linear_attention.naive(*(p.double() for p in parts))
    # A weak decay is a difference of sums to some hundreds, each rounded at its 24th digit.
    for a, b in zip(chunked(*parts), exact, strict=True):
        assert gap(a.double(), b) < 1e-4


@pytest.mark.parametrize("bound", [0.0, 1e-6, 0.1, 0.5, 0.9])
def test_bounded_gate_keeps_its_digits_at_both_ends(bound: float) -> None:
    x = torch.linspace(-30, 30, 301)
    k, g = bounded_gate(x, bound)
    # f = (1 + b u) / (1 + u)
    u = torch.exp(-x.double())
    exact = torch.log1p(bound * u) - torch.log1p(u)
    torch.testing.assert_close(g.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(k.double(), (1 - bound) * u / (1 + u), rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_chunks", [1, 2, 64, 65, 100, 256])
@pytest.mark.parametrize("width", [1, 3])
def test_carry_in_two_levels_equals_the_loop(num_chunks: int, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    decay = torch.rand(1, 2, num_chunks, width, 1, generator=generator, dtype=torch.float64)
    added = torch.randn(1, 2, num_chunks, 3, 4, generator=generator, dtype=torch.float64)
    state = torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64)
    before, final = chunks.carry(decay, added, state)
    for index in range(num_chunks):
        assert gap(before[:, :, index], state) < 1e-12
        state = decay[:, :, index] * state + added[:, :, index]
    assert gap(final, state) < 1e-12
