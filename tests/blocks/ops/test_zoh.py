"""Zero-order hold in real arithmetic: values and gradients at short and long steps."""

import pytest
import torch
from torch import Tensor

from archloop.blocks.ops.zoh import zoh


def gap(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("step", [1e-6, 1e-3, 0.1, 3.0])
def test_agrees_with_complex_arithmetic(step: float) -> None:
    generator = torch.Generator().manual_seed(0)
    real = -0.5 - torch.rand(200, generator=generator)
    imag = 50 * torch.rand(200, generator=generator)
    weights = torch.randn(4, 200, generator=generator)
    parts = [x.requires_grad_() for x in (real, imag, torch.full((200,), step))]
    exact = [x.detach().double().requires_grad_() for x in parts]
    (ar, ai), (br, bi) = zoh(parts[0], parts[1], parts[2])
    poles = torch.complex(exact[0], exact[1])
    a, b = (poles * exact[2]).exp(), (poles * exact[2]).expm1() / poles
    ours, theirs = torch.stack([ar, ai, br, bi]), torch.stack([a.real, a.imag, b.real, b.imag])
    assert gap(ours.double(), theirs) < 2e-6
    got = torch.autograd.grad((ours * weights).sum(), parts)
    want = torch.autograd.grad((theirs * weights.double()).sum(), exact)
    for x, y in zip(got, want, strict=True):
        assert gap(x.double(), y) < 1e-4


def test_the_length_of_a_step_that_outlasts_its_mode_does_not_matter() -> None:
    imag = torch.linspace(0, 1000, 300)
    step = torch.full((300,), 60.0, requires_grad=True)
    _, (br, bi) = zoh(torch.full((300,), -1.0), imag, step)
    assert torch.autograd.grad((br + bi).sum(), step)[0].abs().max() < 1e-9
