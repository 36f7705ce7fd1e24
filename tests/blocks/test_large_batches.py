"""Batches of more rows than an axis of a GPU's grid has programs (65,535)."""

import pytest
import torch

from archloop import registry
from archloop.blocks.ops.scan import scan_pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS, TIME, WIDTH = 70_000, 4, 64
WIDE_STATE = {"mamba2": {"state_dim": 32}, "mamba3": {"state_dim": 32}}


@pytest.mark.parametrize("mixer", sorted(registry.names("mixers")))
def test_rows_do_as_they_would_alone(mixer: str) -> None:
    torch.manual_seed(0)
    layer = registry.get("mixers", mixer).Config(**WIDE_STATE.get(mixer, {})).build(WIDTH).cuda()
    layer = layer.bfloat16()
    x_BTD = torch.randn(ROWS, TIME, WIDTH, device="cuda", dtype=torch.bfloat16)
    x_BTD.requires_grad_()
    y_BTD, _ = layer(x_BTD)
    some = [0, 1, ROWS // 2, ROWS - 1]
    alone = x_BTD.detach()[some].requires_grad_()
    y_alone, _ = layer(alone)
    torch.testing.assert_close(y_BTD[some], y_alone, atol=2e-2, rtol=2e-2)
    given = torch.randn_like(y_alone)
    whole = torch.zeros_like(y_BTD)
    whole[some] = given
    (dx_BTD,) = torch.autograd.grad(y_BTD, x_BTD, whole)
    (dx_alone,) = torch.autograd.grad(y_alone, alone, given)
    torch.testing.assert_close(dx_BTD[some], dx_alone, atol=3e-2, rtol=3e-2)
    rest = torch.ones(ROWS, dtype=torch.bool)
    rest[some] = False
    assert not dx_BTD[rest.cuda()].any()


@pytest.mark.parametrize("mixer", ["gqa", "swa", "mla"])
def test_a_step_of_many_rows(mixer: str) -> None:
    torch.manual_seed(0)
    layer = registry.get("mixers", mixer).Config().build(WIDTH).cuda().bfloat16()
    state, last = layer.init_state(ROWS, 4), layer.init_state(1, 4)
    for position in range(3):
        x_BD = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16)
        at_B = torch.full((ROWS,), position, device="cuda")
        y_BD, _ = layer.step(x_BD, state, positions_B=at_B)
        y_1D, _ = layer.step(x_BD[-1:].clone(), last, positions_B=at_B[-1:])
        torch.testing.assert_close(y_BD[-1:], y_1D, atol=2e-2, rtol=2e-2)


def test_features_beyond_an_axis() -> None:
    """A scan over chunks has every channel of every row as a feature."""
    parts = [torch.rand(1, 3, 3_000_000, device="cuda") for _ in range(4)]
    zero = torch.zeros(1, 3_000_000, device="cuda")
    re, im = scan_pair((parts[0], parts[1]), (parts[2], parts[3]), (zero, zero))
    a, b = (torch.complex(*[p[..., -5:] for p in parts[at : at + 2]]) for at in (0, 2))
    state = torch.zeros_like(b[:, 0])
    for t in range(3):
        state = a[:, t] * state + b[:, t]
        torch.testing.assert_close(torch.complex(re, im)[:, t, -5:], state)


def test_convolution_of_a_prefill() -> None:
    from archloop.runtimes.cuda.kernels import rows  # needs Triton

    x_BTD = torch.randn(ROWS, TIME, 3 * 8, device="cuda")
    weight_DK, past_BLD = torch.randn(8, 3, device="cuda"), torch.zeros(ROWS, 2, 8, device="cuda")
    alone = rows.conv(x_BTD[-1:].clone(), weight_DK, past_BLD[-1:].clone())
    assert torch.equal(rows.conv(x_BTD, weight_DK, past_BLD)[-1:], alone)
