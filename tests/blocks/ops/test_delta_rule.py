"""The chunked delta rule against its plain recurrence, repeated keys and full writes included."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import delta_rule


def inputs(time: int, width: int, strength: float, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(draw(2, 2, time, 6), dim=-1) for _ in range(2))
    g = strength * F.logsigmoid(draw(2, 2, time, width))
    parts = [q, k, draw(2, 2, time, 5), draw(2, 2, time).sigmoid(), g, draw(2, 2, 6, 5)]
    return [p.to(dtype).requires_grad_() for p in parts]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    v, before, final = delta_rule.corrected(k, v, beta, g, initial)
    return delta_rule.read(q, k, v, g, before), final


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1))


@pytest.mark.parametrize("strength", [0.0, 0.1, 1000.0])
@pytest.mark.parametrize("time,width", [(1, 1), (5, 6), (64, 6), (131, 1), (131, 6)])
def test_chunked_equals_recurrence_with_gradients(time: int, width: int, strength: float) -> None:
    parts = inputs(time, width, strength, torch.float64)
    fast, plain = chunked(*parts), delta_rule.naive(*parts)
    losses = []
    for outputs, final in (fast, plain):
        weights = torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64)
        losses.append((outputs.flatten() * weights).sum() + final.sin().sum())
    assert gap(fast[0], plain[0]) < 1e-11
    assert gap(fast[1], plain[1]) < 1e-11
    for a, b in zip(*(torch.autograd.grad(loss, parts) for loss in losses), strict=True):
        assert gap(a, b) < 1e-10


# Full writes of 2 reflect the state, so nothing damps rounding; a triangular solve in place of the
# inverse has errors of the same size (7e-6 where this form has 1.4e-5).
@pytest.mark.parametrize("width", [1, 6])
@pytest.mark.parametrize("beta,tolerance", [(1.0, 2e-6), (1.5, 1e-5), (2.0, 1e-4)])
def test_repeated_keys_written_in_full_keep_float32_accuracy(
    width: int, beta: float, tolerance: float
) -> None:
    q, k, v, strengths, g, initial = (p.detach() for p in inputs(128, width, 0, torch.float32))
    k = k[:, :, :1].expand_as(k)
    parts = (q, k, v, torch.full_like(strengths, beta), g, initial)
    exact = delta_rule.naive(*(p.double() for p in parts))
    for a, b in zip(chunked(*parts), exact, strict=True):
        assert gap(a.double(), b) < tolerance


@pytest.mark.parametrize("width", [1, 6])
def test_weak_decays_after_resets(width: int) -> None:
    q, k, v, beta, g, initial = (p.detach() for p in inputs(150, width, 0.1, torch.float32))
    parts = (q, k, v, beta, torch.where(g < g.quantile(0.1), -1e5, g), initial)
    exact = delta_rule.naive(*(p.double() for p in parts))
    for a, b in zip(chunked(*parts), exact, strict=True):
        assert gap(a.double(), b) < 1e-4


def test_inverse_by_doubling_is_the_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    lower = torch.randn(3, 32, 32, generator=generator, dtype=torch.float64).tril(-1)
    inverse = delta_rule.unit_lower_inverse(lower)
    one = torch.eye(32, dtype=torch.float64)
    assert gap(inverse @ (one + lower), one.expand(3, 32, 32)) < 1e-8


@pytest.mark.parametrize("width", [1, 6])
def test_autocast_rounds_no_inverse(width: int) -> None:
    _, k, v, beta, g, initial = (p.detach() for p in inputs(150, width, 0.1, torch.float32))
    parts = (k[:, :, :1].expand_as(k), v, beta, g, initial)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = delta_rule.corrected(*parts)
    for a, b in zip(rounded, delta_rule.corrected(*parts), strict=True):
        assert torch.equal(a, b)
