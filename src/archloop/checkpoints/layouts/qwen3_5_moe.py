"""Qwen3.5's sparse text models: mixers as in the dense ones, experts in every block."""

from archloop.checkpoints.layouts.qwen3_5 import Qwen35

_EXAMPLE = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 48,
    "vocab_size": 71,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
}


class Qwen35MoE(Qwen35):
    """As the module says; transformers' `Qwen3_5MoeForCausalLM`."""

    has_experts = True
    has_dense = False
    kv_heads = 2
    num_experts = 256
    top_k = 8
    example_std = 0.2
    model_types = {"qwen3_5_moe_text": "Qwen3_5MoeForCausalLM"}
    examples = (
        _EXAMPLE,
        {
            **_EXAMPLE,
            "layer_types": None,
            "full_attention_interval": 2,
            "num_experts": 9,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
            "linear_num_value_heads": 3,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.5,
            },
        },
    )
