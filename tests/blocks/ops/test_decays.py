"""Decays in float32, in every chunked form: what is weak keeps its digits beside what is strong."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from archloop.blocks.ops import delta_rule, linear_attention, ranked_ssd, ssd

Form = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def by_linear_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    states, final = linear_attention.states(k, v, g, None)
    return linear_attention.read(q, k, v, g, states), final


def by_ssd(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    states, final = ssd.states(k, v, g[..., 0], None)
    return ssd.read(q, k, v, g[..., 0], states), final


def by_ranked_ssd(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x[:, :, :, None] for x in (q, k, v))
    states, final = ranked_ssd.states(k, v, g[..., 0], None)
    return ranked_ssd.read(q, k, v, g[..., 0], states)[..., 0, :], final


def by_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    values, states, final = delta_rule.corrected(k, v, torch.ones_like(v[..., 0]), g, None)
    return delta_rule.read(q, k, values, g, states), final


def plain(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return linear_attention.naive(q, k, v, g, None)


def plain_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return delta_rule.naive(q, k, v, torch.ones_like(v[..., 0]), g, None)


FORMS: dict[str, tuple[Form, Form, int]] = {
    "linear_attention": (by_linear_attention, plain, 8),
    "ssd": (by_ssd, plain, 1),
    "ranked_ssd": (by_ranked_ssd, plain, 1),
    "delta_rule": (by_delta_rule, plain_delta_rule, 1),
    "delta_rule_by_channel": (by_delta_rule, plain_delta_rule, 8),
}


def inputs(width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys of length 1, values, and uniform numbers in the shape of the decays."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 128, 8, generator=generator) for _ in range(3))
    uniform = torch.rand(2, 3, 128, width, generator=generator)
    return q, k / k.norm(dim=-1, keepdim=True), v, uniform


def gap(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("name", FORMS)
def test_weak_decays_after_strong_ones_keep_their_digits(name: str) -> None:
    fast, slow, width = FORMS[name]
    q, k, v, uniform = inputs(width)
    g = torch.where(uniform < 0.3, -300 * uniform, -1e-3 * uniform)
    g[:, :, -10:] = -1e-3
    want = slow(q.double(), k.double(), v.double(), g.double())
    for got, exact in zip(fast(q, k, v, g), want, strict=True):
        assert gap(got.double(), exact) < 1e-6


@pytest.mark.parametrize("name", FORMS)
def test_gradients_of_strong_decays_are_no_rounding_noise(name: str) -> None:
    fast, slow, width = FORMS[name]
    q, k, v, uniform = inputs(width)
    g = -10 - 20 * uniform
    gradients = []
    for form, dtype in ((fast, torch.float32), (slow, torch.float64)):
        parts = [x.to(dtype).requires_grad_() for x in (q, k, v, g)]
        outputs, final = form(parts[0], parts[1], parts[2], parts[3])
        gradients.append(torch.autograd.grad(outputs.square().sum() + final.sum(), parts[-1])[0])
    assert gap(gradients[0].double(), gradients[1]) < 1e-6
