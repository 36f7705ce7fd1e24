"""Rows of more values than 32 bits count (2^31): the last ones come out as they would alone."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.conv import activated_conv, causal_conv
from archloop.blocks.ops.gated_conv import gated_conv
from archloop.blocks.ops.norm_rotate import norm_rotate
from archloop.blocks.ops.scan import scan

TIME, HEADS, HEAD_DIM = 131_072, 132, 128
WIDTH = HEADS * HEAD_DIM
ROOM = 64 << 30
"""Bytes of a card that holds the largest of these tests, and what else runs on it."""
LAST = 64
"""Tokens, a whole chunk, that are compared."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("long rows"),  # one after another: together they would fill a card
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """What a test has taken of the card is free for other processes after it; seeded."""
    if torch.cuda.get_device_properties(0).total_memory < ROOM:
        pytest.skip("needs a CUDA device of 64 GiB")
    torch.manual_seed(0)
    yield
    torch.cuda.empty_cache()


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def compare_the_end(form: Callable[[Tensor], Tensor], x_1TE: Tensor) -> None:
    """Outputs and gradients of the last tokens, behind all others and behind few."""
    assert x_1TE.numel() > 2**31
    alone = x_1TE[:, -2 * LAST :].clone().requires_grad_()
    y_1TD, y_alone = form(x_1TE.requires_grad_()), form(alone)
    torch.testing.assert_close(y_1TD[:, -LAST:], y_alone[:, -LAST:])
    whole, few = torch.zeros_like(y_1TD), torch.zeros_like(y_alone)
    whole[:, -LAST:] = few[:, -LAST:] = torch.randn_like(few[:, -LAST:])
    (dx_1TE,) = torch.autograd.grad(y_1TD, x_1TE, whole)
    (dx_alone,) = torch.autograd.grad(y_alone, alone, few)
    torch.testing.assert_close(dx_1TE[:, -LAST:], dx_alone[:, -LAST:])


@pytest.mark.parametrize("silu", [False, True])
def test_convolution(silu: bool) -> None:
    weight_DK, bias_D = randn(WIDTH, 3), randn(WIDTH)

    def form(x_BTD: Tensor) -> Tensor:
        if silu:
            return activated_conv(x_BTD, weight_DK, bias_D)[0]
        return causal_conv(x_BTD, weight_DK)

    compare_the_end(form, randn(1, TIME, WIDTH))


def test_gated_convolution() -> None:
    weight_DK = randn(WIDTH // 3, 3)
    compare_the_end(lambda x_BTE: gated_conv(x_BTE, weight_DK), randn(1, TIME, WIDTH))


def test_sums_of_decays() -> None:
    from archloop.blocks.ops.gpu.linear_attention import Sums  # needs Triton

    def form(g_BTd: Tensor) -> Tensor:
        g_BNTK = g_BTd.unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2)
        b_BNTK: Tensor = apply(Sums, g_BNTK, LAST)
        return b_BNTK.transpose(1, 2).flatten(2)

    compare_the_end(form, torch.rand(1, TIME, WIDTH, device="cuda").neg_())


def test_gradients_of_heads_far_apart() -> None:
    x_BTd, weight_H = randn(1, TIME, WIDTH).requires_grad_(), randn(HEAD_DIM)
    last = x_BTd.detach()[..., -HEAD_DIM:].clone().requires_grad_()
    at_BT = torch.arange(TIME, device="cuda")[None]
    grad_BNTH = torch.zeros(1, HEADS, TIME, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    grad_BNTH[:, -1] = randn(TIME, HEAD_DIM)
    x_BNTH = norm_rotate(x_BTd, HEADS, weight_H, 1e-5, at_BT, 1e4)
    (dx_BTd,) = torch.autograd.grad(x_BNTH, x_BTd, grad_BNTH)
    x_B1TH = norm_rotate(last, 1, weight_H, 1e-5, at_BT, 1e4)
    (dx_BTH,) = torch.autograd.grad(x_B1TH, last, grad_BNTH[:, -1:])
    torch.testing.assert_close(dx_BTd[..., -HEAD_DIM:], dx_BTH)


def test_a_step_reads_heads_far_apart() -> None:
    from archloop.blocks.ops.gpu.step_attention import attention_step  # needs Triton

    # Queries of zeros weigh all slots alike, into however many parts they are split.
    q_BMGK = torch.zeros_like(randn(1, HEADS, 1, HEAD_DIM))
    kv_BMSK = randn(1, HEADS, TIME, HEAD_DIM)
    last_B = torch.tensor([TIME - 1], device="cuda")
    y_BMGV = attention_step(q_BMGK, kv_BMSK, kv_BMSK, last_B, 1.0)
    own = kv_BMSK[:, -1:]
    torch.testing.assert_close(
        y_BMGV[:, -1:], attention_step(q_BMGK[:, -1:], own, own, last_B, 1.0)
    )


def test_scan_of_features_far_apart() -> None:
    a_BTF = torch.full((1, 1, 1), 0.5, device="cuda")
    b_BFT = torch.rand(1, WIDTH, TIME, device="cuda")
    h_BTF = scan(a_BTF, b_BFT.transpose(1, 2))
    last = scan(a_BTF, b_BFT[:, -1:].transpose(1, 2))
    torch.testing.assert_close(h_BTF[..., -1:], last)
