"""Kernels of both chunked linear attentions equal the float64 recurrences, with all gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from accelerator import DEVICE, DTYPES, INTERPRETED
from archloop.blocks.ops import linear_attention, ssd

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]

ERROR = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "mild": lambda x: F.logsigmoid(x) / 16,
    "plain": F.logsigmoid,
    "strong": lambda x: 4000 * F.logsigmoid(x - 2),
    "none": torch.zeros_like,
    "resets": lambda x: torch.where(x > 1.9, -1e5, F.logsigmoid(x) / 16),
}
# Batch, heads, groups, time, key width, value width, gate, initial state.
SHAPES = [
    (1, 2, 1, 1, 32, 64, "plain", True),
    (2, 2, 2, 17, 6, 5, "plain", True),
    (2, 2, 1, 65, 16, 40, "strong", True),
    (1, 2, 2, 130, 72, 16, "mild", False),
    (1, 2, 1, 90, 16, 16, "resets", True),
]
if not INTERPRETED:
    SHAPES += [
        (3, 4, 2, 17, 64, 32, "strong", False),
        (2, 4, 4, 64, 128, 128, "plain", True),
        (4, 8, 1, 300, 32, 64, "mild", True),
        (2, 4, 1, 300, 256, 64, "plain", True),
        (2, 4, 4, 300, 64, 128, "strong", True),
        (2, 4, 2, 300, 64, 128, "resets", True),
        (2, 4, 2, 300, 128, 64, "none", True),
        (2, 2, 1, 300, 128, 256, "mild", True),
        (2, 16, 1, 1025, 128, 64, "plain", False),
        (2, 8, 8, 4097, 64, 64, "mild", True),
        (1, 4, 1, 4097, 128, 64, "mild", True),
    ]


def leaves(shape, dtype, decay_width) -> list[Tensor]:
    batch, heads, groups, time, keys, values, gate, initial = shape

    def by_token(*sizes):
        return torch.randn(sizes[0], sizes[2], sizes[1], *sizes[3:], device=DEVICE).transpose(1, 2)

    g = GATES[gate](by_token(batch, heads, time, *([keys] if decay_width else [])))
    q, k = (by_token(batch, groups, time, keys).to(dtype) for _ in range(2))
    parts = [q, k, by_token(batch, heads, time, values).to(dtype), g]
    if initial:
        parts.append(torch.randn(batch, heads, keys, values, device=DEVICE))
    return [part.requires_grad_() for part in parts]


def exact(parts: list[Tensor]) -> list[Tensor]:
    """In float64, where the plain chunked forms serve, which other tests tie to the recurrence."""
    return [part.detach().double().requires_grad_() for part in parts]


def mixed(
    module, inputs: list[Tensor], weighted: bool, options: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Outputs and final state; the last of the inputs may weigh the values."""
    q, k, v, g, *initial = inputs
    weight = {"weight_BNT": initial.pop()} if weighted else {}
    before, final = module.states(k, v, g, initial[0] if initial else None, **weight)
    return module.read(q, k, v, g, before, **weight, **options), final


def compare(
    module, parts: list[Tensor], dtype: torch.dtype, weighted: bool = False, **options: int
) -> None:
    results = []
    for inputs in (parts, parts, exact(parts)):
        outputs, final = mixed(module, inputs, weighted, options)
        torch.manual_seed(1)
        weights, ends = (torch.randn(x.shape, device=DEVICE) for x in (outputs, final))
        weights = weights.to(dtype)
        gradients = torch.autograd.grad(
            [outputs, final], inputs, [weights.to(outputs.dtype), ends.to(final.dtype)]
        )
        results.append([outputs.detach(), final.detach(), *gradients])
    first, second, plain = results
    # Nothing is added up in an order that may change: a moving result would be a race.
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    names = ["outputs", "final", "dq", "dk", "dv", "dg", "dinitial"]
    if weighted:
        names = [*names[: len(results[0]) - 1], "dweight"]
    found = {}
    for name, fast, exactly in zip(names, first, plain, strict=False):
        assert fast.isfinite().all(), name
        scale = exactly.norm().clamp(min=1e-6 * exactly.numel() ** 0.5)
        found[name] = float((fast.double() - exactly).norm() / scale)
    assert max(found.values()) < ERROR[dtype], found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decay_per_key_channel(shape, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    batch, heads, _, *rest = shape
    shape = (batch, heads, heads, *rest)
    compare(linear_attention, leaves(shape, dtype, decay_width=True), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decay_per_head(shape, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    compare(ssd, leaves(shape, dtype, decay_width=False), dtype)


@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_values(shape, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = leaves(shape, dtype, decay_width=False)
    weight = torch.rand(shape[0], shape[3], shape[1], device=DEVICE).transpose(1, 2)
    compare(ssd, [*parts, weight.requires_grad_()], dtype, weighted=True)


@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_the_token_itself(shape, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = leaves(shape, dtype, decay_width=False)
    compare(ssd, parts, dtype, diagonal=-1)


@pytest.mark.parametrize("largest", [16, 32])
def test_smaller_chunks(largest: int) -> None:
    torch.manual_seed(0)
    q, k, v, g = leaves((1, 2, 2, 40, 16, 16, "plain", False), torch.float32, decay_width=True)
    count = -(-40 // largest)
    before = torch.randn(1, 2, count, 16, 16, device=DEVICE)
    fast = linear_attention.read(q, k, v, g, before, largest=largest)
    plain = linear_attention.read(*exact([q, k, v, g, before]), largest=largest)
    assert float((fast - plain).detach().norm() / plain.detach().norm()) < 1e-5
    fast = ssd.read(q, k, v, g[..., 0], before.unsqueeze(4), largest)
    plain = ssd.read(*exact([q, k, v, g[..., 0], before.unsqueeze(4)]), largest)
    assert float((fast - plain).detach().norm() / plain.detach().norm()) < 1e-5
