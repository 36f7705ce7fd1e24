"""KDA against transformers' Kimi Linear layer and flash-linear-attention's recurrence."""

import kimi
import peers
import pytest
import torch
from torch.nn import functional as F

from archloop.blocks.mixers.kda import KDA
from archloop.blocks.ops import delta_rule


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_operation_agrees_with_naive_recurrence(strength: float) -> None:
    q, k = (F.normalize(peers.inputs(2, 3, 131, 8, seed=s), dim=-1).detach() for s in (1, 2))
    v, initial = peers.inputs(2, 3, 131, 5, seed=3), peers.inputs(2, 3, 8, 5, seed=4)
    beta = peers.inputs(2, 3, 131, seed=5).sigmoid().detach()
    g = (strength * F.logsigmoid(peers.inputs(2, 3, 131, 8, seed=6))).detach()
    leaves = [x.requires_grad_() for x in (q, k, v, beta, g, initial)]
    values, before, final = delta_rule.corrected(k, v, beta, g, initial)
    ours = delta_rule.read(q * 8**-0.5, k, values, g, before)
    theirs, their_final = peers.naive("kda").naive_recurrent_kda(
        *(x.transpose(1, 2) for x in (q, k, v, g, beta)),
        initial_state=initial,
        output_final_state=True,
    )
    peers.compare(ours, theirs.transpose(1, 2), *leaves)
    peers.compare(final, their_final, *leaves[1:])


@pytest.mark.parametrize("time", [3, 131])
def test_block_agrees_with_kimi_linear(time: int) -> None:
    model = peers.transformers("kimi_linear")
    peer = model.KimiLinearDeltaAttention(kimi.settings(rms_norm_eps=1e-6), 0).double().eval()
    with torch.no_grad():
        peer.forget_gate.A_log.uniform_(1, 16).log_()
        peer.forget_gate.dt_bias.normal_()
    peers.jitter(peer)
    ours = KDA.Config(head_dim=16).build(64).double()
    qkv = (peer.q_proj.weight, peer.k_proj.weight, peer.v_proj.weight)
    peers.fill(ours.conv_proj.weight, *qkv)
    peers.fill(ours.conv, peer.conv1d.weight)
    peers.fill(ours.decay_down.weight, peer.forget_gate.f_a_proj.weight)
    peers.fill(ours.decay_up.weight, peer.forget_gate.f_b_proj.weight)
    peers.fill(ours.log_rate, peer.forget_gate.A_log)
    peers.fill(ours.dt_bias, peer.forget_gate.dt_bias)
    peers.fill(ours.beta_proj.weight, peer.b_proj.weight)
    peers.fill(ours.gate_down.weight, peer.g_a_proj.weight)
    peers.fill(ours.gate_up.weight, peer.g_b_proj.weight)
    peers.fill(ours.norm.weight, peer.o_norm.weight)
    peers.fill(ours.out_proj.weight, peer.o_proj.weight)
    x_BTD = peers.inputs(2, time, 64)
    peers.compare(ours(x_BTD)[0], peer(x_BTD), x_BTD)
