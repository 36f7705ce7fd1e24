"""CfC against ncps' cell, driven step by step; linear CfC, our own, against its equation."""

from typing import Literal

import peers
import pytest
import torch
from ncps.torch.cfc_cell import CfCCell

from archloop.blocks.mixers.cfc import CfC
from archloop.blocks.mixers.linear_cfc import LinearCfC

TIME = 23


@pytest.mark.parametrize("mode", ["default", "no_gate", "pure"])
def test_cell_agrees_with_ncps(mode: Literal["default", "no_gate", "pure"]) -> None:
    peer = CfCCell(64, 64, mode=mode, backbone_units=32, backbone_layers=1).double()
    peers.jitter(peer)
    ours = CfC.Config(mode=mode).build(64).double()
    backbone = peer.backbone[0]
    peers.fill(ours.input.weight, backbone.weight[:, :64])
    peers.fill(ours.recurrent.weight, backbone.weight[:, 64:])
    peers.fill(ours.input.bias, backbone.bias)
    if mode == "pure":
        heads = [peer.ff1]
        peers.fill(ours.rate, peer.w_tau)
        peers.fill(ours.amplitude, peer.A)
    else:
        heads = [peer.ff1, peer.ff2]
    gates = [] if mode == "pure" else [(peer.time_a, peer.time_b)]
    peers.fill(
        ours.heads.weight, *(h.weight for h in heads), *(a.weight + b.weight for a, b in gates)
    )
    peers.fill(ours.heads.bias, *(h.bias for h in heads), *(a.bias + b.bias for a, b in gates))
    x_BTD = peers.inputs(2, TIME, 64)
    elapsed_B1 = torch.ones(2, 1, dtype=torch.float64)
    h_BD, outputs = torch.zeros(2, 64, dtype=torch.float64), []
    for x_BD in x_BTD.unbind(1):
        y_BD, h_BD = peer(x_BD, h_BD, elapsed_B1)
        outputs.append(y_BD)
    want = torch.stack(outputs, 1) @ ours.out_proj.weight.T
    peers.compare(ours(x_BTD)[0], want, x_BTD)


def test_linear_cfc_is_its_equation() -> None:
    ours = LinearCfC.Config().build(64).double()
    x_BTD = peers.inputs(2, TIME, 64)
    z = 1.7159 * torch.tanh(0.666 * (x_BTD @ ours.backbone.weight.T))
    f, gate = (z @ ours.heads.weight.T).split(64, -1)
    keep = torch.sigmoid(gate + ours.gate_bias)
    h, outputs = torch.zeros(2, 64, dtype=torch.float64), []
    for t in range(TIME):
        h = keep[:, t] * h + (1 - keep[:, t]) * torch.tanh(f[:, t])
        outputs.append(h)
    want = torch.stack(outputs, 1) @ ours.out_proj.weight.T
    peers.compare(ours(x_BTD)[0], want, x_BTD, *ours.parameters())
