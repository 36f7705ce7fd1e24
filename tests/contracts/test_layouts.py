"""Every checkpoint layout of the library keeps its contract."""

import pytest

from archloop import registry
from archloop.checkpoints import families
from archloop.stack import cost, presets
from archloop.testing import LayoutContract


class TestLayouts(LayoutContract):
    names = registry.shipped("layouts")


UNSAID = ("mamba3-1.5b", "falcon-h1-0.5b-attention")
"""Presets of no family that transformers loads."""


@pytest.mark.parametrize("name", [name for name in presets.names() if name not in UNSAID])
def test_every_preset_can_be_said_in_a_family(name: str) -> None:
    spec = presets.load(name)
    layout, config = families.saying(spec)
    again = layout.read(config)
    assert cost.num_params(again) == cost.num_params(spec)
    assert again.layout == spec.layout


GEMMA3 = {
    "model_type": "gemma3_text",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 1024,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
}
SIZES = {
    "gemma-3-270m": (
        268_098_176,
        {
            "model_type": "gemma3_text",
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 262_144,
            "sliding_window": 512,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window_pattern": 6,
        },
    ),
    # Without vision encoder and projector.
    "gemma-3-4b": (
        3_880_263_168,
        {**GEMMA3, "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34},
    ),
    "gemma-3-27b": (
        27_009_346_304,
        {
            **GEMMA3,
            "hidden_size": 5376,
            "intermediate_size": 21_504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "query_pre_attn_scalar": 168,
        },
    ),
    "nemotron-h-8b": (
        8_100_852_736,
        {
            "model_type": "nemotron_h",
            "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*" + "-M-M-M-M-M*" * 2 + "-M" * 5 + "-",
            "num_hidden_layers": 52,
            "num_attention_heads": 32,
            "attention_head_dim": 128,
            "mamba_proj_bias": False,
            "rms_norm_eps": 1e-5,
        },
    ),
    "kimi-linear-48b-a3b": (
        49_122_675_072,
        {
            "model_type": "kimi_linear",
            "first_k_dense_replace": 1,
            "linear_attn_config": {
                "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
                "kda_layers": [n for n in range(1, 27) if n % 4],
                "head_dim": 128,
                "num_heads": 32,
                "short_conv_kernel_size": 4,
            },
            "mla_use_nope": True,
            "rope_theta": 1e4,
            "num_expert_group": 1,
        },
    ),
    "qwen3-next-80b-a3b": (
        79_674_391_296,
        {
            "model_type": "qwen3_next",
            "hidden_size": 2048,
            "vocab_size": 151_936,
            "intermediate_size": 5120,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "full_attention_interval": 4,
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e7,
        },
    ),
    "falcon-h1-0.5b": (
        521_411_104,
        {
            "model_type": "falcon_h1",
            "hidden_size": 1024,
            "vocab_size": 32_784,
            "intermediate_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "mamba_d_ssm": 1536,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "mamba_n_heads": 24,
            "mamba_norm_before_gate": False,
            "rope_theta": 1e11,
        },
    ),
    "granite-4.0-h-350m": (
        340_332_224,
        {
            "model_type": "granitemoehybrid",
            "hidden_size": 768,
            "vocab_size": 100_352,
            "num_hidden_layers": 32,
            "layer_types": ["attention" if n in (10, 13, 17, 27) else "mamba" for n in range(32)],
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "shared_intermediate_size": 2048,
            "num_local_experts": 0,
            "mamba_n_heads": 48,
            "mamba_d_state": 128,
            "tie_word_embeddings": True,
            "position_embedding_type": "nope",
        },
    ),
    "granite-4.0-h-tiny": (
        6_939_037_248,
        {
            "model_type": "granitemoehybrid",
            "hidden_size": 1536,
            "vocab_size": 100_352,
            "num_hidden_layers": 40,
            "layer_types": ["attention" if n % 10 == 5 else "mamba" for n in range(40)],
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "intermediate_size": 512,
            "shared_intermediate_size": 1024,
            "num_local_experts": 64,
            "num_experts_per_tok": 6,
            "mamba_n_heads": 48,
            "mamba_d_state": 128,
            "tie_word_embeddings": True,
            "position_embedding_type": "nope",
        },
    ),
    "nemotron-3-nano-30b-a3b": (
        31_577_937_344,
        {
            "model_type": "nemotron_h",
            "hybrid_override_pattern": "MEMEM*E" + "MEMEM*E" * 4 + "MEMEMEM*EMEMEMEME",
            "num_hidden_layers": 52,
            "hidden_size": 2688,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "intermediate_size": 1856,
            "mamba_num_heads": 64,
            "mamba_proj_bias": False,
            "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_experts_per_tok": 6,
            "norm_eps": 1e-5,
            "partial_rotary_factor": 1.0,
            "rope_theta": 10_000,
            "routed_scaling_factor": 2.5,
        },
    ),
    "qwen3.5-35b-a3b": (
        34_660_610_688,
        {
            "model_type": "qwen3_5_moe_text",
            "hidden_size": 2048,
            "vocab_size": 248_320,
            "num_hidden_layers": 40,
            "num_attention_heads": 16,
            "full_attention_interval": 4,
        },
    ),
}
"""Parameters of published models, and what their configurations say."""


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_counted_without_building(name: str) -> None:
    num_params, config = SIZES[name]
    assert cost.num_params(families.reading(config).read(config)) == num_params
