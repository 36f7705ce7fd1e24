"""S4 against HiPPO-LegS itself, through scipy, and against the complex DPLR form it stands for."""

import numpy as np
import peers
import torch
from scipy import signal

from archloop.blocks.base import Span
from archloop.blocks.mixers.s4 import S4
from archloop.blocks.ops.hippo import dplr, legs

TIME, STATES = 150, 8
SPAN = Span(torch.arange(TIME).expand(1, -1))


def test_starts_as_hippo_legs() -> None:
    """At initialisation the system is LegS in another basis: scipy simulates the original."""
    ours = S4.Config(state_dim=STATES).build(64)
    with torch.no_grad():
        hippo = dplr(STATES)
        ours.double()
        ours.frequency.copy_(hippo.poles_M.imag)
        peers.fill(ours.p, torch.view_as_real(hippo.low_rank_M).T)
        peers.fill(ours.b, torch.view_as_real(hippo.input_M).T)
        ours.log_decay.fill_(np.log(0.5))
    u_BTD = peers.inputs(1, TIME, 64)
    y_BTD = ours.core(u_BTD, None, SPAN)
    a, b = (x.numpy() for x in legs(STATES))
    for channel in (0, 40):
        dt = ours.log_dt[channel].exp().item()
        c_M = torch.complex(*ours.c[:, channel].detach())
        c = 2 * (c_M @ hippo.basis_NM.conj().T).real.numpy()[None]
        # scipy's bilinear rule changes C as well; its discrete A and B are those of S4.
        full = (a, b[:, None], c, np.zeros((1, 1)))
        ad, bd, *_ = signal.cont2discrete(full, dt, method="bilinear")
        _, want, _ = signal.dlsim((ad, bd, c @ ad, c @ bd, dt), u_BTD[0, :, channel].detach())
        assert peers.error(y_BTD[0, :, channel], torch.from_numpy(want[:, 0])) < peers.EXACT


def test_agrees_with_complex_diagonal_plus_low_rank() -> None:
    """All N conjugate modes, complex, with dense solves; gradients too."""
    ours = S4.Config(state_dim=STATES).build(64).double()
    peers.jitter(ours, scale=0.3)
    u_BTD = peers.inputs(1, 40, 64)
    leaves = [ours.log_dt, ours.log_decay, ours.frequency, ours.p, ours.b, ours.c]
    poles = torch.complex(-ours.log_decay.exp(), ours.frequency)
    p, b = torch.complex(*ours.p), torch.complex(*ours.b)
    poles, p, b = (torch.cat([x, x.conj()]) for x in (poles, p, b))
    a = torch.diag(poles) - p[:, None] * p.conj()
    eye = torch.eye(STATES, dtype=a.dtype)
    wanted = []
    for channel in range(2):
        half = ours.log_dt[channel].exp() / 2
        c = torch.complex(*ours.c[:, channel])
        c = torch.cat([c, c.conj()])
        ad = torch.linalg.solve(eye - half * a, eye + half * a)
        bd = torch.linalg.solve(eye - half * a, 2 * half * b)
        x, outputs = torch.zeros_like(b), []
        for u in u_BTD[0, :, channel]:
            x = ad @ x + bd * u
            outputs.append((c @ x).real)
        wanted.append(torch.stack(outputs))
    y_BTD = ours.core(u_BTD, None, Span(SPAN.positions_BT[:, :40]))
    peers.compare(y_BTD[0, :, :2], torch.stack(wanted, 1), u_BTD, *leaves)
