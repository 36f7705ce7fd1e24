"""HGRN2 against its layer's equations around flash-linear-attention's naive recurrence."""

import peers
import pytest
import torch
from torch.nn import functional as F

from archloop.blocks.mixers.hgrn2 import HGRN2


@pytest.mark.parametrize("block_index", [0, 3])
@pytest.mark.parametrize("strength", [1.0, 20.0])
def test_block_agrees_with_the_naive_recurrence(block_index: int, strength: float) -> None:
    ours = HGRN2.Config(head_dim=16).build(64, block_index=block_index, num_blocks=4).double()
    peers.jitter(ours)
    with torch.no_grad():
        ours.feature_proj.weight[:64] *= strength
    x_BTD = peers.inputs(2, 70, 64)
    f, v = F.linear(x_BTD, ours.feature_proj.weight).split([64, 64], -1)
    q = F.linear(x_BTD, ours.query_proj.weight)
    g = F.logsigmoid(f)
    if block_index:
        bound = torch.tensor(block_index / 4, dtype=torch.float64)
        g = torch.logaddexp(bound.log(), torch.log1p(-bound) + g)
    heads = [x.unflatten(-1, (4, -1)) for x in (q * torch.sigmoid(q), 1 - g.exp(), v, g)]
    o = peers.naive("gla").naive_recurrent_gla(*heads)[0].flatten(-2)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * ours.norm.weight
    theirs = F.linear(o, ours.out_proj.weight)
    peers.compare(ours(x_BTD)[0], theirs, x_BTD, *ours.parameters())
