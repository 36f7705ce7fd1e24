"""Mamba-2 against transformers' mixer."""

import peers
import pytest

from archloop.blocks.mixers.mamba2 import Mamba2


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("time", [3, 131])
def test_block_agrees_with_transformers(num_groups: int, time: int) -> None:
    mamba2 = peers.transformers("mamba2")
    settings = mamba2.Mamba2Config(
        hidden_size=64,
        num_heads=8,
        head_dim=16,
        state_size=12,
        n_groups=num_groups,
        conv_kernel=4,
        expand=2,
        chunk_size=32,
        use_conv_bias=True,
        num_hidden_layers=1,
    )
    peer = mamba2.Mamba2Mixer(settings, 0).double().eval()
    peers.jitter(peer)
    config = Mamba2.Config(head_dim=16, state_dim=12, num_groups=num_groups)
    ours = config.build(64).double()
    z, convolved, dt = peer.in_proj.weight.split([128, 128 + 24 * num_groups, 8])
    peers.fill(ours.query_proj.weight, z)
    peers.fill(ours.feature_proj.weight, convolved, dt)
    peers.fill(ours.conv, peer.conv1d.weight)
    peers.fill(ours.conv_bias, peer.conv1d.bias)
    peers.fill(ours.log_rate, peer.A_log)
    peers.fill(ours.dt_bias, peer.dt_bias)
    peers.fill(ours.skip, peer.D)
    peers.fill(ours.norm, peer.norm.weight)
    peers.fill(ours.out_proj.weight, peer.out_proj.weight)
    x_BTD = peers.inputs(2, time, 64)
    peers.compare(ours(x_BTD)[0], peer(x_BTD), x_BTD)
