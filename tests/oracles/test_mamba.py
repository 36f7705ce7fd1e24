"""Mamba against transformers' mixer, from an empty state.

Its own continuation of a sequence by several tokens restarts from zero: that is not compared.
"""

import peers
import pytest

from archloop.blocks.mixers.mamba import Mamba


@pytest.mark.parametrize("time", [3, 131])
def test_block_agrees_with_transformers(time: int) -> None:
    mamba = peers.transformers("mamba")
    settings = mamba.MambaConfig(
        hidden_size=64, state_size=8, conv_kernel=4, expand=2, num_hidden_layers=1
    )
    peer = mamba.MambaMixer(settings, 0).double().eval()
    peers.jitter(peer)
    ours = Mamba.Config(state_dim=8).build(64).double()
    x, z = peer.in_proj.weight.chunk(2)
    for own, theirs in (
        (ours.x_proj.weight, x),
        (ours.z_proj.weight, z),
        (ours.conv, peer.conv1d.weight),
        (ours.conv_bias, peer.conv1d.bias),
        (ours.select.weight, peer.x_proj.weight),
        (ours.dt_proj.weight, peer.dt_proj.weight),
        (ours.dt_bias, peer.dt_proj.bias),
        (ours.a_log, peer.A_log),
        (ours.skip, peer.D),
        (ours.out_proj.weight, peer.out_proj.weight),
    ):
        peers.fill(own, theirs)
    x_BTD = peers.inputs(2, time, 64)
    peers.compare(ours(x_BTD)[0], peer(x_BTD), x_BTD)
