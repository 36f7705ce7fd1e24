"""Every checkpoint layout of the library keeps its contract."""

import pytest

from archloop import registry
from archloop.checkpoints import families
from archloop.stack import cost, presets
from archloop.testing import LayoutContract


class TestLayouts(LayoutContract):
    names = registry.shipped("layouts")


@pytest.mark.parametrize("name", presets.names())
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
}
"""Parameters of published models, and what their configurations say."""


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_counted_without_building(name: str) -> None:
    num_params, config = SIZES[name]
    assert cost.num_params(families.reading(config).read(config)) == num_params
