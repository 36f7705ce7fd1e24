"""S5 and Liquid-S4 against s5-pytorch's functions, given complex128."""

import peers
import torch
from s5 import s5_model
from torch.nn import functional as F

from archloop.blocks.base import Span
from archloop.blocks.mixers.liquid_s4 import LiquidS4
from archloop.blocks.mixers.s5 import S5

TIME = 37


def test_s5_agrees_with_s5_pytorch() -> None:
    ours = S5.Config(modes=0.25).build(64).double()
    peers.jitter(ours, scale=0.3)
    x_BTD = peers.inputs(1, TIME, 64)
    poles = torch.complex(-ours.log_decay.exp(), ours.frequency)
    b_PD = torch.complex(*ours.b.weight.chunk(2))
    cr, negative_ci = ours.c.weight.chunk(2, 1)
    bars = s5_model.discretize_zoh(poles, b_PD, ours.log_dt.exp())
    y_TD, _ = s5_model.apply_ssm(*bars, torch.complex(cr, -negative_ci), ours.d, x_BTD[0])
    gelu = F.gelu(y_TD)
    want = gelu * torch.sigmoid(gelu @ ours.gate.weight.T)
    peers.compare(ours(x_BTD)[0][0], want, x_BTD, *ours.parameters())


def test_liquid_s4_agrees_with_the_liquid_scan_of_s5_pytorch() -> None:
    ours = LiquidS4.Config(state_dim=6).build(64).double()
    peers.jitter(ours, scale=0.5)
    u_BTD = peers.inputs(1, TIME, 64)
    a, b, c = (torch.complex(*pair) for pair in ours.coefficients())
    wanted = []
    for channel in range(3):
        v_T1 = u_BTD[0, :, channel : channel + 1].tanh()
        none = torch.zeros(1, dtype=torch.float64)
        y_T1, _ = s5_model.apply_ssm_liquid(
            a[channel], b[channel][:, None], 2 * c[channel][None], none, v_T1
        )
        wanted.append(y_T1[:, 0])
    y_BTD = ours.core(u_BTD, None, Span(torch.arange(TIME)[None]))
    leaves = (ours.log_dt, ours.log_decay, ours.frequency, ours.beta, ours.c)
    peers.compare(y_BTD[0, :, :3], torch.stack(wanted, 1), u_BTD, *leaves)


def test_liquid_s4_never_grows_whatever_the_parameters() -> None:
    ours = LiquidS4.Config(state_dim=6).build(64).double()
    peers.jitter(ours, scale=5.0)
    a, b, _ = (torch.complex(*pair) for pair in ours.coefficients())
    for v in (-1.0, -0.3, 0.7, 1.0):
        assert (a + b * v).abs().max() < 1
