"""Mixtures of experts against transformers: LFM2-MoE, Kimi Linear, Nemotron-H, Granite."""

from typing import Any

import kimi
import peers
import pytest
import torch

from archloop.blocks.channel_mixers.moe import MoE

WIDTH, NUM_EXPERTS, TOP_K = 64, 8, 3
COMMON = {"num_experts": NUM_EXPERTS, "top_k": TOP_K, "expansion": 0.5}


def compare(ours: Any, peer: Any, router: Any, experts: Any, shared: Any = None) -> None:
    """Copy a peer's weights into ours and compare outputs and gradients."""
    peers.fill(ours.router.weight, router.weight)
    into = experts.gate_up_proj if hasattr(experts, "gate_up_proj") else experts.up_proj
    peers.fill(ours.gate_up, into)
    peers.fill(ours.down, experts.down_proj)
    if shared is not None:
        up = [shared.gate_proj.weight] if hasattr(shared, "gate_proj") else []
        mine = ours.shared.gate_up_proj if up else ours.shared.up_proj
        peers.fill(mine.weight, *up, shared.up_proj.weight)
        peers.fill(ours.shared.down_proj.weight, shared.down_proj.weight)
    bias_E = 0.3 * torch.randn(NUM_EXPERTS, generator=torch.Generator().manual_seed(3))
    for theirs in (peer, router):
        for name in ("expert_bias", "e_score_correction_bias"):
            if hasattr(theirs, name):
                getattr(theirs, name).copy_(bias_E)
                ours.expert_bias.copy_(bias_E)
    x_BTD = peers.inputs(2, 40, WIDTH)
    peers.compare(ours(x_BTD), peer(x_BTD), x_BTD)


def build(**config: Any) -> MoE:
    module: MoE = MoE.Config(**COMMON, **config).build(WIDTH)
    return module.double().eval()


def test_lfm2_router() -> None:
    lfm2 = peers.transformers("lfm2_moe")
    settings = lfm2.Lfm2MoeConfig(
        hidden_size=WIDTH,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=32,
        routed_scaling_factor=1.5,
        use_expert_bias=True,
        norm_topk_prob=True,
        num_hidden_layers=2,
        layer_types=["conv", "full_attention"],
        experts_implementation="eager",
    )
    peer = lfm2.Lfm2MoeSparseMoeBlock(settings).double().eval()
    peers.randomise(peer)
    compare(build(routed_scale=1.5), peer, peer.gate, peer.experts)


@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
def test_kimi_router_with_shared_expert(groups: tuple[int, int]) -> None:
    settings = kimi.settings(
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=32,
        n_shared_experts=1,
        n_group=groups[0],
        topk_group=groups[1],
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        experts_implementation="eager",
    )
    peer = peers.transformers("kimi_linear").KimiLinearMoE(settings).double().eval()
    peers.randomise(peer)
    ours = build(
        router="kimi",
        num_groups=groups[0],
        top_groups=groups[1],
        routed_scale=2.5,
        shared_expansion=0.5,
    )
    compare(ours, peer, peer.gate, peer.experts, peer.shared_experts)


@pytest.mark.parametrize("latent", [None, 24])
def test_nemotron_router_with_squared_relu_experts(latent: int | None) -> None:
    """In the model's stream and, with projections into and out of it, in a narrower one."""
    nemotron = peers.transformers("nemotron_h")
    settings = nemotron.NemotronHConfig(
        hidden_size=WIDTH,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=96,
        moe_latent_size=latent,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=2.0,
        norm_topk_prob=True,
        mlp_hidden_act="relu2",
        experts_implementation="eager",
    )
    peer = nemotron.NemotronHMoE(settings, 0).double().eval()
    peers.randomise(peer)
    ours = build(
        router="kimi",
        num_groups=2,
        top_groups=1,
        routed_scale=2.0,
        shared_expansion=1.5,
        activation="relu2",
        latent_ratio=(latent or 0) / WIDTH,
    )
    if latent:
        peers.fill(ours.latent_in.weight, peer.fc1_latent_proj.weight)
        peers.fill(ours.latent_out.weight, peer.fc2_latent_proj.weight)
    compare(ours, peer, peer.gate, peer.experts, peer.shared_experts)


def test_granite_router_with_shared_expert() -> None:
    granite = peers.transformers("granitemoehybrid")
    settings = granite.GraniteMoeHybridConfig(
        hidden_size=WIDTH,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        intermediate_size=32,
        shared_intermediate_size=64,
        experts_implementation="eager",
    )
    routed = granite.GraniteMoeHybridMoE(settings).double().eval()
    shared = granite.GraniteMoeHybridMLP(settings).double().eval()
    peers.randomise(routed)
    ours = build(router="granite", shared_expansion=1.0)
    peers.fill(ours.shared.gate_up_proj.weight, shared.input_linear.weight)
    peers.fill(ours.shared.down_proj.weight, shared.output_linear.weight)

    def peer(x_BTD: torch.Tensor) -> torch.Tensor:
        return routed(x_BTD) + shared(x_BTD)

    compare(ours, peer, routed.router, routed.experts)
