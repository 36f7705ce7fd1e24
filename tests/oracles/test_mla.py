"""Latent attention against transformers' Kimi Linear layer; decode on latents included."""

import kimi
import peers
import torch

from archloop.blocks.mixers.mla import MLA


def test_block_agrees_with_kimi_linear() -> None:
    peer = peers.transformers("kimi_linear").KimiLinearAttention(kimi.settings(), 1)
    peer = peer.double().eval()
    peers.jitter(peer)
    ours = MLA.Config(head_dim=16, latent_dim=24, shared_key_dim=8).build(64).double()
    peers.fill(ours.query_proj.weight, peer.q_proj.weight)
    peers.fill(ours.latent_proj.weight, peer.kv_a_proj_with_mqa.weight)
    peers.fill(ours.latent_norm.weight, peer.kv_a_layernorm.weight)
    # Theirs keeps W_k and W_v of one head together, ours of all heads.
    by_head = peer.kv_b_proj.weight.unflatten(0, (4, -1)).split([16, 16], 1)
    peers.fill(ours.up_proj.weight, *(part.flatten(0, 1) for part in by_head))
    peers.fill(ours.out_proj.weight, peer.o_proj.weight)
    x_BTD = peers.inputs(2, 37, 64)
    theirs, _ = peer(x_BTD, torch.ones(37, 37, dtype=torch.bool).tril()[None, None])
    peers.compare(ours(x_BTD)[0], theirs, x_BTD)
    state = ours.init_state(2, 37)
    for t in range(37):
        y_BD, _ = ours.step(x_BTD[:, t], state, positions_B=torch.tensor([t, t]))
        assert peers.error(y_BD, theirs[:, t]) < peers.EXACT
