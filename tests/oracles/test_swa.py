"""Sliding-window attention against transformers' Mistral layer."""

import peers
import pytest
import torch

from archloop.blocks.mixers.swa import SWA

WIDTH, HEAD_DIM, THETA = 64, 16, 1e4


@pytest.mark.parametrize("window", [1, 7, 64, 200])
@pytest.mark.parametrize("time", [5, 129])
def test_agrees_with_mistral(window: int, time: int) -> None:
    mistral = peers.transformers("mistral")
    settings = mistral.MistralConfig(
        hidden_size=WIDTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        sliding_window=window,
        attn_implementation="sdpa",
    )
    peer = mistral.MistralAttention(settings, 0).double().eval()
    peers.jitter(peer)
    mixer = SWA.Config(
        head_dim=HEAD_DIM, queries_per_kv=2, window=window, qk_norm=False, rope_theta=THETA
    )
    ours = mixer.build(WIDTH).double()
    parts = (peer.q_proj.weight, peer.k_proj.weight, peer.v_proj.weight)
    peers.fill(ours.qkv_proj.weight, *parts)
    peers.fill(ours.out_proj.weight, peer.o_proj.weight)

    x_BTD = peers.inputs(2, time, WIDTH)
    steps_T = torch.arange(time)
    exponents = torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM
    angles = torch.outer(steps_T.double(), THETA**-exponents).repeat(1, 2)[None]
    back_TT = steps_T[:, None] - steps_T
    mask = (back_TT >= 0) & (back_TT < window)
    theirs, _ = peer(x_BTD, (angles.cos(), angles.sin()), mask[None, None])
    peers.compare(ours(x_BTD)[0], theirs, x_BTD)
