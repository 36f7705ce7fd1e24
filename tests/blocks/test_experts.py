"""Both fast ways of running experts equal the plain one, outputs and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from archloop.blocks.channel_mixers import moe

Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@pytest.mark.parametrize("fast", [moe.gathered_experts, moe.sorted_experts])
@pytest.mark.parametrize("hidden", [6, 12], ids=["relu2", "swiglu"])
@pytest.mark.parametrize("tokens", [1, 17])
def test_fast_forms_equal_the_plain_one(fast: Experts, hidden: int, tokens: int) -> None:
    torch.manual_seed(tokens)
    num_experts, width, inner, top_k = 5, 8, 6, 2
    inputs = [
        torch.randn(tokens, width, dtype=torch.float64),
        torch.rand(tokens, top_k, dtype=torch.float64),
        torch.randn(num_experts, hidden, width, dtype=torch.float64),
        torch.randn(num_experts, width, inner, dtype=torch.float64),
    ]
    for tensor in inputs:
        tensor.requires_grad_()
    x_XD, weights_XK, gate_up, down = inputs
    # The last expert acts on no token.
    experts_XK = torch.rand(tokens, num_experts - 1).topk(top_k).indices
    outputs = [
        form(x_XD, weights_XK, experts_XK, gate_up, down) for form in (fast, moe.dense_experts)
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    weight_XD = torch.randn_like(outputs[0])
    mine, plain = (torch.autograd.grad((y * weight_XD).sum(), inputs) for y in outputs)
    for got, expected in zip(mine, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_float32_logits_are_float32_under_autocast_too() -> None:
    torch.manual_seed(0)
    mixer, x_XD = moe.MoE.Config(router="kimi").build(64), torch.randn(50, 64)
    weights_XK, experts_XK = mixer.route(x_XD)
    with torch.autocast("cpu", torch.bfloat16):
        same_XK, the_same_XK = mixer.route(x_XD)
    assert torch.equal(same_XK, weights_XK)
    assert torch.equal(the_same_XK, experts_XK)
