"""Chunked SSD against its plain recurrence: groups of heads, any length, any gate strength."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import ssd


def inputs(time: int, groups: int, strength: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    g = strength * F.logsigmoid(draw(2, 4, time))
    qk = [draw(2, groups, time, 6) for _ in range(2)]
    return [p.requires_grad_() for p in [*qk, draw(2, 4, time, 5), g, draw(2, 4, 6, 5)]]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    before, final = ssd.states(k, v, g, initial)
    return ssd.read(q, k, v, g, before), final


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1))


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0, 1000.0])
@pytest.mark.parametrize("time,groups", [(1, 1), (5, 2), (64, 4), (131, 1), (131, 2)])
def test_chunked_equals_recurrence_with_gradients(time: int, groups: int, strength: float) -> None:
    parts = inputs(time, groups, strength)
    fast, plain = chunked(*parts), ssd.naive(*parts)
    losses = []
    for outputs, final in (fast, plain):
        weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64)
        losses.append((outputs.flatten() * weights).sum() + final.sin().sum())
    assert gap(fast[0], plain[0]) < 1e-11
    assert gap(fast[1], plain[1]) < 1e-11
    for a, b in zip(*(torch.autograd.grad(loss, parts) for loss in losses), strict=True):
        assert gap(a, b) < 1e-10


def test_weak_decays_after_resets() -> None:
    q, k, v, g, initial = (p.detach().float() for p in inputs(150, 2, 0.1))
    parts = (q, k, v, torch.where(g < g.quantile(0.1), -1e5, g), initial)
    exact = ssd.naive(*(p.double() for p in parts))
    for a, b in zip(chunked(*parts), exact, strict=True):
        assert gap(a.double(), b) < 1e-4


def test_no_state_is_the_zero_state() -> None:
    q, k, v, g, initial = inputs(70, 2, 1.0)
    for a, b in zip(chunked(q, k, v, g, None), chunked(q, k, v, g, 0 * initial), strict=True):
        assert torch.equal(a, b)
