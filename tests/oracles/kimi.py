"""A small Kimi Linear configuration of transformers."""

from typing import Any

import peers


def settings(**changes: Any) -> Any:
    return peers.transformers("kimi_linear").KimiLinearConfig(
        hidden_size=64,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=4,
        linear_num_heads=4,
        linear_head_dim=16,
        linear_conv_kernel_dim=4,
        q_lora_rank=None,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        attn_implementation="sdpa",
        **changes,
    )
