"""Gated DeltaNet against transformers' Qwen3-Next layer and flash-linear-attention's recurrence."""

import peers
import pytest
import torch
from torch.nn import functional as F

from archloop.blocks.mixers.gated_deltanet import GatedDeltaNet
from archloop.blocks.ops import delta_rule


def test_operation_agrees_with_naive_recurrence() -> None:
    q, k = (F.normalize(peers.inputs(2, 3, 131, 8, seed=s), dim=-1).detach() for s in (1, 2))
    v, initial = peers.inputs(2, 3, 131, 5, seed=3), peers.inputs(2, 3, 8, 5, seed=4)
    beta = peers.inputs(2, 3, 131, seed=5).sigmoid().detach()
    g = F.logsigmoid(peers.inputs(2, 3, 131, seed=6)).detach()
    leaves = [x.requires_grad_() for x in (q, k, v, beta, g, initial)]
    values, before, final = delta_rule.corrected(k, v, beta, g[..., None], initial)
    ours = delta_rule.read(q * 8**-0.5, k, values, g[..., None], before)
    naive = peers.naive("gated_delta_rule").naive_recurrent_gated_delta_rule
    theirs, their_final = naive(
        *(x.transpose(1, 2) for x in (q, k, v, beta, g)),
        initial_state=initial,
        output_final_state=True,
    )
    peers.compare(ours, theirs.transpose(1, 2), *leaves)
    peers.compare(final, their_final, *leaves[1:])


@pytest.mark.parametrize("values_per_key", [1, 2])
@pytest.mark.parametrize("time", [3, 131])
def test_block_agrees_with_qwen3_next(values_per_key: int, time: int) -> None:
    qwen = peers.transformers("qwen3_next")
    settings = qwen.Qwen3NextConfig(
        hidden_size=64,
        linear_num_key_heads=4,
        linear_num_value_heads=4 * values_per_key,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    peer = qwen.Qwen3NextGatedDeltaNet(settings, 0).double().eval()
    peers.jitter(peer)
    ours = GatedDeltaNet.Config(head_dim=16, values_per_key=values_per_key).build(64).double()
    # Theirs keeps q, k, v, z (and b, a) of one key head together, ours of all heads.
    wide, r = 16 * values_per_key, values_per_key
    by_head = peer.in_proj_qkvz.weight.unflatten(0, (4, -1)).split([16, 16, wide, wide], 1)
    q, k, v, z = (part.flatten(0, 1) for part in by_head)
    b, a = (p.flatten(0, 1) for p in peer.in_proj_ba.weight.unflatten(0, (4, -1)).split([r, r], 1))
    peers.fill(ours.conv_proj.weight, q, k, v)
    peers.fill(ours.gate_proj.weight, z)
    peers.fill(ours.decay_proj.weight, a, b)
    peers.fill(ours.conv, peer.conv1d.weight)
    peers.fill(ours.log_rate, peer.A_log)
    peers.fill(ours.dt_bias, peer.dt_bias)
    peers.fill(ours.norm.weight, peer.norm.weight)
    peers.fill(ours.out_proj.weight, peer.out_proj.weight)
    x_BTD = peers.inputs(2, time, 64)
    assert torch.equal(ours.conv.flatten(), peer.conv1d.weight.flatten())
    peers.compare(ours(x_BTD)[0], peer(x_BTD), x_BTD)
