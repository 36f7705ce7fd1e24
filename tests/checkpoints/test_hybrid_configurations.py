"""Configurations of families: names that files of the hub use, and what is refused."""

from typing import Any

import pytest

from archloop.checkpoints import families
from archloop.errors import UserError


def example(name: str) -> dict[str, Any]:
    return dict(families.layout(name).examples[0])


def test_kimi_linear_as_the_hub_has_it() -> None:
    layout, ours = families.layout("kimi_linear"), example("kimi_linear")
    spec = layout.read(ours)
    older = {
        "linear_attn_config": {
            "full_attn_layers": [2],
            "kda_layers": [1],
            "head_dim": 8,
            "num_heads": 5,
            "short_conv_kernel_size": 4,
        },
        "first_k_dense_replace": 1,
        "mla_use_nope": True,
        "moe_router_activation_func": "sigmoid",
        "rope_theta": 1e4,
        "head_dim": 72,
        "q_lora_rank": None,
    }
    gone = ("layer_types", "linear_head_dim", "linear_num_heads")
    assert layout.read({k: v for k, v in ours.items() if k not in gone} | older) == spec
    assert spec.layout == ["kda", "mla"]
    four = layout.read({**ours, "layer_types": None, "num_hidden_layers": 9})
    assert [n for n, kind in enumerate(four.layout) if kind == "mla"] == [4, 8]


HUB_KEYS: dict[str, dict[str, Any]] = {
    # SmolLM2, written by nanotron, with settings of transformers.js.
    "llama": {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "gemma3": {"cache_implementation": "hybrid", "final_logit_softcapping": None},
    "falcon_h1": {"mlp_expansion_factor": 8, "mamba_use_mlp": True},
    "mamba2": {"rms_norm": True, "norm_before_gate": True},
    "qwen3_5": {
        "attn_output_gate": True,
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "partial_rotary_factor": 0.25,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e7,
            "rope_type": "default",
        },
    },
}
"""What files on the hub say beside the keys that transformers 5 writes."""


@pytest.mark.parametrize("name", HUB_KEYS)
def test_keys_of_the_hub_change_nothing(name: str) -> None:
    layout, ours = families.layout(name), example(name)
    assert layout.read({**ours, **HUB_KEYS[name]}) == layout.read(ours)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("kimi_linear", {"q_lora_rank": 16}, "q_lora_rank"),
        ("kimi_linear", {"v_head_dim": 16}, "v_head_dim"),
        ("kimi_linear", {"num_key_value_heads": 1}, "num_key_value_heads"),
        ("kimi_linear", {"mla_use_nope": False}, "mla_use_nope"),
        ("kimi_linear", {"moe_router_activation_func": "softmax"}, "moe_router_activation_func"),
        ("kimi_linear", {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
        ("kimi_linear", {"num_local_experts": 9}, "contradict each other"),
        ("kimi_linear", {"layer_types": ["conv", "conv"]}, "'conv'"),
        ("kimi_linear", {"linear_attn_config": {"gate": 1}}, "linear_attn_config.gate"),
        (
            "kimi_linear",
            {
                "layer_types": None,
                "linear_attn_config": {"full_attn_layers": [1], "kda_layers": []},
            },
            "each layer from 1 to num_hidden_layers=2 once",
        ),
        ("falcon_h1", {"mamba_proj_bias": True}, "mamba_proj_bias"),
        ("falcon_h1", {"projectors_bias": True}, "projectors_bias"),
        ("falcon_h1", {"attn_layer_indices": [1]}, "attn_layer_indices"),
        ("falcon_h1", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ("falcon_h1", {"ssm_multipliers": [1.0] * 4}, "ssm_multipliers.*5 numbers"),
        ("falcon_h1", {"mlp_multipliers": [1.0, -1.0]}, "mlp_multipliers.*2 numbers"),
        ("falcon_h1", {"mamba_d_ssm": 80}, "mamba_n_heads=6 of mamba_d_head=12"),
        ("falcon_h1", {"mlp_bias": True}, "mlp_bias"),
        ("qwen3_next", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_next", {"linear_value_head_dim": 16}, "must be equal"),
        ("qwen3_next", {"linear_num_key_heads": 4}, "does not divide 6 value heads"),
        ("qwen3_next", {"attention_bias": True}, "attention_bias"),
        ("qwen3_next", {"mlp_only_layers": ["a"]}, "mlp_only_layers"),
        ("qwen3_next", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen3_5_moe", {"intermediate_size": 40}, "intermediate_size.*not understood"),
        ("qwen3_5_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers.*only \[\] is supported"),
        ("qwen3_5", {"attn_output_gate": False}, "attn_output_gate"),
        ("mamba2", {"rms_norm": False}, "rms_norm"),
        ("mamba2", {"time_step_limit": 3}, "time_step_limit=3 is not supported"),
        ("zamba2", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    name: str, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        families.layout(name).read(example(name) | change)


def test_factors_are_written_to_the_last_bit() -> None:
    """A factor on keys is one on products here, and one on logits a divisor."""
    layout, ours = families.layout("falcon_h1"), example("falcon_h1")
    for factor in (0.39062499999999994, 0.0390625, 0.1, 1 / 3, 7.3):
        ours |= {"key_multiplier": factor, "lm_head_multiplier": factor}
        spec = layout.read(ours)
        said = layout.write(spec)
        assert layout.read(said) == spec
        assert (said["key_multiplier"], said["lm_head_multiplier"]) == pytest.approx(
            (factor, factor), rel=1e-15
        )
