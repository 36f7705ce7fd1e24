"""RTF against scipy's filter with the same rational transfer function."""

import numpy as np
import peers
import torch
from scipy import signal

from archloop.blocks.base import Span
from archloop.blocks.mixers.rtf import RTF

TIME = 300
SPAN = Span(torch.arange(TIME).expand(1, -1))


def build() -> RTF:
    ours = RTF.Config(order=5).build(64).double()
    peers.jitter(ours, scale=0.3)
    return ours


def test_agrees_with_scipy_lfilter() -> None:
    ours = build()
    u_BTD = peers.inputs(1, TIME, 64)
    y_BTD = ours.core(u_BTD, None, SPAN) + ours.skip * u_BTD
    a_DN = ours.denominator().detach().numpy()
    for channel in (0, 31):
        den = np.concatenate([[1.0], a_DN[channel]])
        num = np.concatenate([ours.b[channel].detach().numpy(), [0.0]])
        num = num + ours.skip[channel].item() * den
        want = signal.lfilter(num, den, u_BTD[0, :, channel].detach().numpy())
        assert peers.error(y_BTD[0, :, channel], torch.from_numpy(want)) < peers.EXACT


def test_gradients_agree_with_the_difference_equation() -> None:
    """``y_t = sum b_i u_{t-i} - sum a_i y_{t-i}``, on outputs instead of a state."""
    ours = build()
    u_BTD = peers.inputs(1, 60, 64)
    a_DN, past = ours.denominator(), 5
    outputs = [torch.zeros(64, dtype=torch.float64)] * past
    padded = [torch.zeros(64, dtype=torch.float64)] * past + list(u_BTD[0])
    for t in range(60):
        recent = torch.stack(padded[t + past - 4 : t + past + 1][::-1], 1)
        earlier = torch.stack(outputs[-past:][::-1], 1)
        outputs.append((ours.b * recent).sum(1) - (a_DN * earlier).sum(1))
    y_BTD = ours.core(u_BTD, None, Span(SPAN.positions_BT[:, :60]))
    leaves = (ours.a, ours.slack, ours.b)
    peers.compare(y_BTD[0], torch.stack(outputs[past:]), u_BTD, *leaves)


def test_poles_lie_inside_the_unit_circle_whatever_the_parameters() -> None:
    ours = build()
    peers.jitter(ours, seed=3, scale=10.0)
    for a_N in ours.denominator().detach().numpy():
        assert np.abs(np.roots(np.concatenate([[1.0], a_N]))).max() < 1
