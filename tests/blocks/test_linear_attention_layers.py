"""Whole mixers on kernels of linear attention equal the same mixers in float64, gradients too."""

import copy

import pytest
import torch
from torch import Tensor, nn

from accelerator import DEVICE
from archloop import registry
from archloop.blocks.base import Span

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

WIDTH = 64


def built(name: str) -> nn.Module:
    return registry.get("mixers", name).Config().build(WIDTH).to(DEVICE)


def outputs_and_gradients(layer: nn.Module, x_BTD: Tensor) -> list[Tensor]:
    x_BTD = x_BTD.clone().requires_grad_()
    y_BTD = layer(x_BTD)[0]
    weights = torch.arange(y_BTD.numel(), device=DEVICE).cos().view(y_BTD.shape).to(y_BTD.dtype)
    return [y_BTD.detach(), *torch.autograd.grad(y_BTD, [x_BTD, *layer.parameters()], weights)]


@pytest.mark.parametrize("name", ["gla", "hgrn2", "mamba2", "mamba3"])
def test_layer_equals_float64(name: str) -> None:
    layer, x_BTD = built(name), torch.randn(2, 70, WIDTH, device=DEVICE)
    fast = outputs_and_gradients(layer, x_BTD)
    plain = outputs_and_gradients(copy.deepcopy(layer).double(), x_BTD.double())
    for a, b in zip(fast, plain, strict=True):
        assert float((a.double() - b).norm() / b.norm().clamp(min=1e-6)) < 1e-4


@pytest.mark.parametrize("name", ["gla", "hgrn2", "mamba2", "mamba3"])
@torch.no_grad()
def test_prefill_continues_from_a_state(name: str) -> None:
    layer, x_BTD = built(name), torch.randn(2, 70, WIDTH, device=DEVICE)
    state = layer.init_state(2, 128)
    parts = [layer(part, state)[0] for part in x_BTD.split([41, 28, 1], 1)]
    whole = copy.deepcopy(layer).double()(x_BTD.double())[0]
    assert float((torch.cat(parts, 1).double() - whole).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("name", ["gla", "hgrn2", "gated_deltanet", "kda"])
@torch.no_grad()
def test_a_consumer_asks_the_state_of_another(name: str) -> None:
    config = registry.get("mixers", name).Config()
    source, consumer = config.build(WIDTH).to(DEVICE), config.build(WIDTH, consumer=True).to(DEVICE)
    x_BTD, own_BTD = (torch.randn(2, 70, WIDTH, device=DEVICE) for _ in range(2))
    span = Span(torch.arange(70, device=DEVICE).expand(2, 70))
    fast = consumer.run(own_BTD, None, span, source.share(x_BTD, None, span))
    source, consumer = source.double(), consumer.double()
    plain = consumer.run(own_BTD.double(), None, span, source.share(x_BTD.double(), None, span))
    assert float((fast.double() - plain).norm() / plain.norm()) < 1e-4
