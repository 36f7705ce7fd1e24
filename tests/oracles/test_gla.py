"""GLA against flash-linear-attention's naive recurrence."""

import peers
import pytest
import torch
from torch.nn import functional as F

from archloop.blocks.mixers.gla import GLA
from archloop.blocks.ops import linear_attention


@pytest.mark.parametrize("strength", [1 / 16, 1.0, 30.0])
def test_operation_agrees_with_naive_recurrence(strength: float) -> None:
    q, k = (peers.inputs(2, 3, 131, 8, seed=s) for s in (1, 2))
    v, initial = peers.inputs(2, 3, 131, 5, seed=3), peers.inputs(2, 3, 8, 5, seed=4)
    g = (strength * F.logsigmoid(peers.inputs(2, 3, 131, 8, seed=5))).detach().requires_grad_()
    before, final = linear_attention.states(k, v, g, initial)
    ours = linear_attention.read(q * 8**-0.5, k, v, g, before)
    naive = peers.naive("gla").naive_recurrent_gla
    theirs, their_final = naive(*(x.transpose(1, 2) for x in (q, k, v, g)), initial, True)
    peers.compare(ours, theirs.transpose(1, 2), q, k, v, g, initial)
    peers.compare(final, their_final, k, v, g, initial)


def test_block_agrees_with_the_paper_around_the_naive_recurrence() -> None:
    ours = GLA.Config(head_dim=16, norm_eps=1e-5).build(64).double()
    peers.jitter(ours)
    x_BTD = peers.inputs(2, 70, 64)
    k, v, low = F.linear(x_BTD, ours.feature_proj.weight).split([32, 64, 16], -1)
    q, gate = F.linear(x_BTD, ours.query_proj.weight).split([32, 64], -1)
    g = F.logsigmoid(F.linear(low, ours.gate_proj.weight, ours.gate_proj.bias)) / 16
    heads = [x.unflatten(-1, (4, -1)) for x in (q, k, v, g)]
    o, _ = peers.naive("gla").naive_recurrent_gla(*heads)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * ours.norm.weight
    theirs = F.linear(o.flatten(-2) * gate * torch.sigmoid(gate), ours.out_proj.weight)
    peers.compare(ours(x_BTD)[0], theirs, x_BTD, *ours.parameters())
