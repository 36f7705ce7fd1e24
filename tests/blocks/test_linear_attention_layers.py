"""Whole mixers on kernels of linear attention equal the same mixers in float64, gradients too.

Runs on a CUDA device, or under Triton's interpreter: ``TRITON_INTERPRET=1 pytest -m gpu``.
"""

import copy
import os

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)

from archloop import registry  # noqa: E402
from archloop.blocks.ops import triton_kernels  # noqa: E402

pytestmark = pytest.mark.gpu

DEVICE = "cpu" if INTERPRETED else "cuda"
WIDTH = 64


@pytest.fixture(autouse=True)
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(triton_kernels, "usable", lambda x, *dtypes: x.dtype == torch.float32)
    torch.manual_seed(0)


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
