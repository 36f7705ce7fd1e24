"""Kernels are compiled once for all lengths, and ahead of a first pass if asked."""

import copy
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accelerator import INTERPRETED
from archloop import registry
from archloop.blocks.ops.decay_gate import decay_gate
from archloop.blocks.ops.triton_kernels import compile_ahead

triton = pytest.importorskip("triton")
tl = triton.language
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("kernels"),
    pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing"),
]
WITH_KERNELS = [
    "gated_deltanet",
    "gla",
    "hgrn2",
    "kda",
    "liquid_s4",
    "mamba",
    "mamba2",
    "mamba3",
    "s5",
]
BESIDE_KERNELS = ["short_conv", "linear_cfc"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of kernels that were not there when they were launched.

    What earlier tests of this process compiled is forgotten: mixers share kernels.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("archloop.blocks.ops.gpu."):
            for kernel in vars(module).values():
                if isinstance(kernel, triton.JITFunction):
                    kernel.device_caches.clear()
    names: list[str] = []

    def note(**kernel: Any) -> None:
        names.append(kernel["repr"])

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    return names


def gradient(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    x_BTD = x_BTD.detach().requires_grad_()
    y_BTD: Tensor = layer(x_BTD)[0]
    return torch.autograd.grad(y_BTD.square().sum(), x_BTD)[0]


def layer_and_input(mixer: str, batch: int, time: int) -> tuple[nn.Module, Tensor]:
    layer = registry.get("mixers", mixer).Config().build(512).cuda()
    return layer, torch.randn(batch, time, 512, device="cuda")


@pytest.mark.parametrize("mixer", WITH_KERNELS)
def test_compiled_ahead(mixer: str, compiled: list[str]) -> None:
    layer, x_BTD = layer_and_input(mixer, 3, 72)
    compile_ahead(lambda: gradient(copy.deepcopy(layer), x_BTD))
    assert compiled
    compiled.clear()
    found = gradient(layer, x_BTD)
    assert not compiled
    expected = gradient(copy.deepcopy(layer).double(), x_BTD.double())
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("mixer", WITH_KERNELS + BESIDE_KERNELS)
def test_compiled_for_all_lengths(mixer: str, compiled: list[str]) -> None:
    layer, x_BTD = layer_and_input(mixer, 4, 128)
    gradient(layer, x_BTD)
    compiled.clear()
    for batch, time in ((4, 100), (5, 77), (4, 1025), (7, 257)):
        gradient(layer, torch.randn(batch, time, 512, device="cuda"))
    # How many values a program carries depends on how many rows there are.
    assert not [name for name in compiled if "_carry" not in name]


@triton.autotune([triton.Config({"BLOCK": 32}), triton.Config({"BLOCK": 64})], key=[])
@triton.jit
def _add_one_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + tl.arange(0, BLOCK)) + 1)


def test_kernels_that_tune_themselves_wait() -> None:
    x = torch.zeros(64, device="cuda")
    compile_ahead(lambda: _add_one_kernel[(1,)](x))
    assert not x.any()
    assert not _add_one_kernel.cache
    _add_one_kernel[(1,)](x)
    assert x.any()


def test_launches_of_other_threads_run() -> None:
    x, bias, rate = torch.randn(4, 32, device="cuda"), *torch.rand(2, 32, device="cuda")
    found: list[Tensor] = []

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: found.append(decay_gate(x, bias, rate)))
        thread.start()
        thread.join()

    compile_ahead(elsewhere)
    expected = decay_gate(x.double(), bias.double(), rate.double())
    assert torch.allclose(found[0].double(), expected, rtol=1e-5)
