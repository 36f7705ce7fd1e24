"""Zero-order hold in real arithmetic: values and gradients at short and long steps."""

import pytest
import torch
from torch import Tensor

from archloop.blocks.ops.zoh import zoh


def gap(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("step", [1e-6, 1e-3, 0.1, 3.0, 50.0])
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
    # Where a step outlasts the mode nothing depends on its length: that gradient is tiny.
    got = torch.autograd.grad((ours * weights).sum(), parts)
    want = torch.autograd.grad((theirs * weights.double()).sum(), exact)
    for x, y in zip(got, want, strict=True):
        assert gap(x.double(), y) < 1e-4
