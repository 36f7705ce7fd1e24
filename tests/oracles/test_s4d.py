"""S4D against scipy's discretisation and simulation of the same continuous system."""

import numpy as np
import peers
import torch
from scipy import signal

from archloop.blocks.base import Span
from archloop.blocks.mixers.s4d import S4D

TIME = 200
SPAN = Span(torch.arange(TIME).expand(1, -1))


def test_core_agrees_with_scipy() -> None:
    ours = S4D.Config(state_dim=6).build(64).double()
    peers.jitter(ours, scale=0.3)
    u_BTD = peers.inputs(1, TIME, 64)
    y_BTD = ours.core(u_BTD, None, SPAN)
    for channel in (0, 17, 63):
        a, b, c = (x.detach().numpy() for x in real_system(ours, channel))
        dt = ours.log_dt[channel].exp().item()
        discrete = signal.cont2discrete((a, b, c, np.zeros((1, 1))), dt, method="zoh")
        # dlsim reads before the update; the models here read after it: y_t = C (A x + B u).
        ad, bd = discrete[0], discrete[1]
        after = (ad, bd, c @ ad, c @ bd, dt)
        _, want, _ = signal.dlsim(after, u_BTD[0, :, channel].detach().numpy())
        assert peers.error(y_BTD[0, :, channel], torch.from_numpy(want[:, 0])) < peers.EXACT


def test_gradients_agree_with_the_complex_recurrence() -> None:
    """The paper's equations in complex128, token by token. (torch.matrix_exp errs by 1e-9.)"""
    ours = S4D.Config(state_dim=4).build(64).double()
    peers.jitter(ours, scale=0.3)
    u_BTD = peers.inputs(1, TIME, 64)
    poles = torch.complex(-ours.log_decay.exp(), ours.frequency)
    decay = torch.exp(poles * ours.log_dt.exp()[:, None])
    b, c = (decay - 1) / poles, torch.complex(*ours.c)
    x, outputs = torch.zeros_like(b), []
    for u_D in u_BTD[0]:
        x = decay * x + b * u_D[:, None]
        outputs.append(2 * (c * x).real.sum(-1))
    leaves = (ours.log_dt, ours.log_decay, ours.frequency, ours.c)
    y_BTD = ours.core(u_BTD, None, SPAN)
    peers.compare(y_BTD[0], torch.stack(outputs), u_BTD, *leaves)


def real_system(ours: S4D, channel: int) -> tuple[torch.Tensor, ...]:
    """A, B, C of one channel on real and imaginary parts."""
    decay, frequency = -ours.log_decay[channel].exp(), ours.frequency[channel]
    cr, ci = ours.c[:, channel]
    a = torch.stack(
        [
            torch.cat([torch.diag(decay), torch.diag(-frequency)], 1),
            torch.cat([torch.diag(frequency), torch.diag(decay)], 1),
        ]
    ).flatten(0, 1)
    b = torch.cat([torch.ones_like(decay), torch.zeros_like(decay)])[:, None]
    c = 2 * torch.cat([cr, -ci])[None]
    return a, b, c
