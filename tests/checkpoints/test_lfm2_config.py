"""Both generations of configuration files, against transformers and against contradictions."""

from types import SimpleNamespace
from typing import Any

import pytest

from archloop.checkpoints import families
from archloop.stack import cost, presets
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec

LAYOUT = families.layout("lfm2")
FIRST_GENERATION: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_dim": 1024,
    "block_ff_dim": 6656,
    "block_ffn_dim_multiplier": 1.0,
    "block_mlp_init_scale": 1.0,
    "block_multiple_of": 256,
    "block_norm_eps": 1e-05,
    "block_out_init_scale": 1.0,
    "block_use_swiglu": True,
    "block_use_xavier_init": True,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_dim": 1024,
    "conv_dim_out": 1024,
    "conv_use_xavier_init": True,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_heads": 16,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 1000000.0,
    "theta": 1000000.0,
    "tie_embedding": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0.dev0",
    "use_cache": True,
    "use_pos_enc": True,
    "vocab_size": 65536,
}
SECOND_GENERATION: dict[str, Any] = {
    "architectures": ["Lfm2MoeForCausalLM"],
    "conv_L_cache": 3,
    "conv_bias": False,
    "dtype": "bfloat16",
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "layer_types": LAYOUT.write(presets.load("lfm2-8b-a1b"))["layer_types"],
    "max_position_embeddings": 128000,
    "model_type": "lfm2_moe",
    "moe_intermediate_size": 1792,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": True,
    "use_expert_bias": True,
    "vocab_size": 65536,
}


def test_first_generation_is_the_350m_preset() -> None:
    assert LAYOUT.read(FIRST_GENERATION) == presets.load("lfm2-350m")


def test_second_generation_is_the_8b_preset() -> None:
    assert LAYOUT.read(SECOND_GENERATION) == presets.load("lfm2-8b-a1b")


def test_a_sparse_model_may_list_its_attention_layers() -> None:
    """As other implementations of its first generation write it."""
    listed = {"full_attn_idxs": [2, 6, 10, 14, 18, 21]}
    for kinds in (SECOND_GENERATION["layer_types"], None):
        spec = LAYOUT.read(SECOND_GENERATION | listed | {"layer_types": kinds})
        assert spec == presets.load("lfm2-8b-a1b")


def test_lfm2_5_vocabulary() -> None:
    spec = LAYOUT.read(SECOND_GENERATION | {"vocab_size": 128_000})
    assert cost.num_params(spec) == 8_339_929_856 + (128_000 - 65_536) * 2048


@pytest.mark.parametrize("multiplier", [1.0, 1, 0.7, None])
@pytest.mark.parametrize("width", [6656, 10240, 12288, 1000])
@pytest.mark.parametrize("adjust", [True, False])
def test_ffn_width_rule_is_transformers(multiplier: Any, width: int, adjust: bool) -> None:
    modeling = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    settings = {
        "block_ffn_dim_multiplier": multiplier,
        "block_auto_adjust_ff_dim": adjust,
        "block_multiple_of": 256,
    }
    theirs = SimpleNamespace(hidden_size=1024, intermediate_size=width, **settings)
    wanted = modeling.Lfm2MLP(theirs).w1.weight.shape[0]
    given = FIRST_GENERATION | settings | {"block_ff_dim": width}
    if wanted % 8:
        with pytest.raises(ValueError, match=f"{wanted} is not a multiple of 8"):
            LAYOUT.read(given)
        return
    channel = LAYOUT.read(given).blocks[0].channel_mixer
    assert channel is not None
    assert cost.channel_config(channel).sizes(1024)["d_ff"] == wanted


def test_neither_layer_list_means_attention_everywhere() -> None:
    config = {k: v for k, v in FIRST_GENERATION.items() if k != "full_attn_idxs"}
    assert set(LAYOUT.read(config).layout) == {"gqa"}


@pytest.mark.parametrize(
    "change, named",
    [
        ({"sliding_window": 256}, "'sliding_window'.*256.*not understood"),
        ({"quantization_config": {"bits": 4}}, "'quantization_config'"),
        ({"auto_map": {"AutoModel": "x.py"}}, "'auto_map'"),
        ({"num_experts": 4}, "'num_experts'.*not understood for lfm2 "),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type='linear'"),
        ({"rope_parameters": {"factor": 2.0}}, "'rope_parameters.factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"theta": 10000.0}, "said twice, differently"),
        ({"rope_theta": True, "theta": None}, "'rope_theta' must be .* not True"),
        ({"rope_theta": [1e6]}, "'rope_theta'"),
        ({"rope_theta": 0.5, "theta": 0.5}, "rope_theta=0.5 must be a number above 1"),
        ({"rope_theta": float("inf"), "theta": None}, "'rope_theta' .* not inf"),
        ({"norm_eps": True}, "'norm_eps'"),
        ({"norm_eps": "1e-5"}, "'norm_eps'"),
        ({"max_position_embeddings": -1}, "'max_position_embeddings'"),
        ({"block_ffn_dim_multiplier": "1.0"}, "'block_ffn_dim_multiplier'"),
        ({"block_ffn_dim_multiplier": float("inf")}, "'block_ffn_dim_multiplier'"),
        ({"block_ffn_dim_multiplier": -1.0}, "'block_ffn_dim_multiplier'"),
        ({"model_type": ["lfm2"]}, r"model_type=\['lfm2'\]"),
        ({"full_attn_idxs": [[2]]}, r"full_attn_idxs=\[\[2\]\]"),
        ({"full_attn_idxs": [True]}, "full_attn_idxs"),
        ({"head_dim": 63}, "head_dim=63"),
        ({"conv_L_cache": 65}, "'conv_L_cache' is 65; at most 64"),
        ({"block_use_swiglu": False}, "'block_use_swiglu' is False"),
        ({"use_pos_enc": False}, "'use_pos_enc'"),
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"model_type": None}, "model_type=None"),
        ({"architectures": ["Lfm2ForSequenceClassification"]}, "architectures"),
        ({"hidden_size": None}, "'hidden_size'"),
        ({"hidden_size": "1024"}, "'hidden_size'"),
        ({"num_key_value_heads": 5}, "num_key_value_heads=5"),
        ({"full_attn_idxs": [16]}, "full_attn_idxs"),
        ({"layer_types": ["conv"] * 16}, "contradict"),
        ({"layer_types": ["conv"], "full_attn_idxs": None}, "layer_types must list"),
        ({"layer_types": ["mamba"] * 16, "full_attn_idxs": None}, "'mamba'"),
        ({"conv_bias": "no"}, "'conv_bias'"),
        ({"conv_L_cache": 0}, "'conv_L_cache'"),
        ({"num_hidden_layers": 10**12}, "'num_hidden_layers' is 10+; at most"),
    ],
    ids=str,
)
def test_refused_keys_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LAYOUT.read(FIRST_GENERATION | change)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"layer_types": None}, "'layer_types' is missing"),
        ({"full_attn_idxs": [2]}, "contradict"),
        ({"block_ff_dim": 64}, "'block_ff_dim'.*lfm2_moe"),
        ({"block_auto_adjust_ff_dim": True}, "'block_auto_adjust_ff_dim'.*lfm2_moe"),
        ({"num_dense_layers": -1}, "num_dense_layers"),
        ({"num_shared_experts": 1}, "'num_shared_experts'"),
        ({"num_experts_per_tok": 33}, "num_experts_per_tok=33 exceeds num_experts=32"),
        ({"routed_scaling_factor": "2"}, "'routed_scaling_factor'"),
        ({"routed_scaling_factor": 0}, "'routed_scaling_factor'"),
    ],
    ids=str,
)
def test_refused_keys_of_moe_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LAYOUT.read(SECOND_GENERATION | change)


@pytest.mark.parametrize("name", [n for n in presets.names() if n.startswith("lfm2")])
def test_every_preset_and_twin_can_be_said(name: str) -> None:
    spec = presets.load(name)
    again = LAYOUT.read(LAYOUT.write(spec))
    assert cost.num_params(again) == cost.num_params(spec)
    assert again.layout == spec.layout


ATTENTION = MixerSpec(name="gqa", config={"head_dim": 64, "queries_per_kv": 2})
DENSE = ChannelMixerSpec(name="swiglu", config={"expansion": 4.5})


@pytest.mark.parametrize(
    "block, named",
    [
        (BlockSpec(mixers=(ATTENTION,)), "channel mixer"),
        (BlockSpec(mixers=(ATTENTION, ATTENTION), channel_mixer=DENSE), "one mixer"),
        (BlockSpec(mixers=(ATTENTION,), channel_mixer=DENSE, post_norms=True), "block 3"),
        (
            BlockSpec(
                mixers=(MixerSpec(name="short_conv", config={"kernel": 5}),), channel_mixer=DENSE
            ),
            "block 3.*kernel",
        ),
        (
            BlockSpec(
                mixers=(ATTENTION.model_copy(update={"state_from": 2}),), channel_mixer=DENSE
            ),
            "block 3.*state_from",
        ),
    ],
)
def test_a_stack_of_another_family_is_refused(block: BlockSpec, named: str) -> None:
    spec = presets.load("lfm2-350m")
    blocks = (*spec.blocks[:3], block, *spec.blocks[4:])
    with pytest.raises(ValueError, match=rf"(?s){named}"):
        LAYOUT.write(spec.replace(blocks=[b.model_dump() for b in blocks]))


@pytest.mark.parametrize(
    "change", [{"router": "granite"}, {"shared_expansion": 1.0}, {"activation": "relu2"}], ids=str
)
def test_experts_of_another_family_are_refused(change: dict[str, Any]) -> None:
    spec = presets.load("lfm2-8b-a1b")
    blocks = [block.model_dump() for block in spec.blocks]
    blocks[5]["channel_mixer"]["config"] |= change
    with pytest.raises(ValueError, match="block 5"):
        LAYOUT.write(spec.replace(blocks=blocks))


def test_multipliers_are_refused() -> None:
    with pytest.raises(ValueError, match="logits_divisor"):
        LAYOUT.write(presets.load("lfm2-350m").replace(logits_divisor=2.0))
