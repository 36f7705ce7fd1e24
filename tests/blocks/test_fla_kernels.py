"""`triton_kernels.from_fla`: flash-linear-attention's kernels in the place of our own.

On a CPU plain forms stand in for its kernels, so that what they are handed is checked; the kernels
themselves run on a GPU, in one of the hundreds of configurations that each would try.
"""

import copy
import importlib.util

import pytest
import torch
from torch import Tensor, nn

from archloop import registry
from archloop.blocks.base import Span
from archloop.blocks.ops import delta_rule, linear_attention, triton_kernels
from archloop.blocks.ops.gpu import fla
from archloop.errors import UserError

WIDTH = 128
SERVED = ["gla", "hgrn2", "kda"]


def layers(name: str, device: str) -> list[nn.Module]:
    """A block, and one that reads its state."""
    config = registry.get("mixers", name).Config()
    built = (config.build(WIDTH, consumer=reads) for reads in (False, True))
    return [layer.to(device, torch.bfloat16) for layer in built]


def through_both(source: nn.Module, consumer: nn.Module, x_BTD: Tensor) -> list[Tensor]:
    """Outputs of a block and of its consumer, and all gradients; the first row is padded."""
    x_BTD = x_BTD.clone().requires_grad_()
    batch, time, _ = x_BTD.shape
    lengths_B = torch.tensor([time - 7, time], device=x_BTD.device)
    steps_T = torch.arange(time, device=x_BTD.device)
    span = Span(steps_T.expand(batch, time), lengths_B=lengths_B)
    features = source.share(x_BTD, None, span)
    assert span.valid_BT is not None
    outputs = [layer.run(x_BTD, None, span, features) for layer in (source, consumer)]
    outputs = [y_BTD[span.valid_BT] for y_BTD in outputs]
    weights = [torch.arange(y.numel(), device=y.device).cos().view(y.shape) for y in outputs]
    leaves = [x_BTD, *source.parameters(), *consumer.parameters()]
    gradients = torch.autograd.grad(
        outputs, leaves, [w.to(y.dtype) for w, y in zip(weights, outputs, strict=True)]
    )
    return [*(y.detach() for y in outputs), *gradients]


def largest_error(found: list[Tensor], exact: list[Tensor]) -> float:
    pairs = zip(found, exact, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plain forms in place of fla's, on a CPU; the names of those that were called."""
    calls = []

    def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        calls.append("gla")
        return linear_attention.naive(q, k, v, g, None)[0].to(v.dtype)

    def kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
        calls.append("kda")
        return delta_rule.naive(q, k, v, beta, g, None)[0].to(v.dtype)

    monkeypatch.setattr(fla, "gla", gla)
    monkeypatch.setattr(fla, "kda", kda)
    monkeypatch.setattr(
        triton_kernels, "taken_from_fla", lambda v, key_width: triton_kernels._from_fla
    )
    return calls


@pytest.mark.parametrize("name", SERVED)
def test_a_block_and_its_consumer_on_a_cpu(name: str, asked: list[str]) -> None:
    torch.manual_seed(0)
    source, consumer = layers(name, "cpu")
    x_BTD = torch.randn(2, 40, WIDTH, dtype=torch.bfloat16)
    own = through_both(source, consumer, x_BTD)
    assert not asked
    with triton_kernels.from_fla():
        found = through_both(source, consumer, x_BTD)
    assert asked == [name.replace("hgrn2", "gla")] * 2
    assert largest_error(found, own) < 2e-2


@pytest.mark.parametrize("name", SERVED)
@torch.no_grad()
def test_a_state_is_kept_by_our_own(name: str, asked: list[str]) -> None:
    layer, _ = layers(name, "cpu")
    with triton_kernels.from_fla():
        layer(torch.randn(2, 5, WIDTH, dtype=torch.bfloat16), layer.init_state(2, 8))
    assert not asked


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"archloop\[gpu\]"), triton_kernels.from_fla():
        raise AssertionError("entered")


@pytest.mark.gpu
@pytest.mark.parametrize("name", SERVED)
def test_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    autotuner = pytest.importorskip("triton.runtime.autotuner").Autotuner
    if not torch.cuda.is_available():
        pytest.skip("fla's kernels need a CUDA device")
    prune = autotuner.prune_configs
    monkeypatch.setattr(autotuner, "prune_configs", lambda *args: list(prune(*args))[:1])
    torch.manual_seed(0)
    both = layers(name, "cuda")
    x_BTD = torch.randn(2, 150, WIDTH, dtype=torch.bfloat16, device="cuda")
    exact = through_both(*(copy.deepcopy(layer).double() for layer in both), x_BTD.double())
    calls = []
    served = getattr(fla, name.replace("hgrn2", "gla"))
    monkeypatch.setattr(fla, served.__name__, lambda *parts: calls.append(1) or served(*parts))
    own = largest_error(through_both(*both, x_BTD), exact)
    assert not calls
    with triton_kernels.from_fla():
        found = through_both(*both, x_BTD)
        v = x_BTD[None]
        assert triton_kernels.taken_from_fla(v, 256)
        assert not triton_kernels.taken_from_fla(v, 257)
        assert not triton_kernels.taken_from_fla(v.float(), 64)
    assert not triton_kernels.taken_from_fla(v, 64)
    assert len(calls) == 2
    assert largest_error(found, exact) < max(2 * own, 2e-2)
