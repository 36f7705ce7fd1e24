"""Qwen3.5's dense text models: Qwen3-Next without experts, its projections cut as ours."""

from collections.abc import Iterator
from typing import Any

from archloop.checkpoints.keys import Keys
from archloop.checkpoints.layouts.qwen3_next import Qwen3Next
from archloop.checkpoints.pieces import Piece
from archloop.stack.spec import StackSpec

_EXAMPLE = {
    "model_type": "qwen3_5_text",
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
}


class Qwen35(Qwen3Next):
    """As the module says; transformers' `Qwen3_5ForCausalLM`."""

    has_experts = False
    kv_heads = 4
    # How positions in pictures are told apart; those of text are equal in all sections.
    inert_rope = ("mrope_section", "mrope_interleaved")
    model_types = {"qwen3_5_text": "Qwen3_5ForCausalLM"}
    examples = (
        {
            **_EXAMPLE,
            "full_attention_interval": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
            },
        },
        {
            **_EXAMPLE,
            "layer_types": ["full_attention", "linear_attention"],
            "tie_word_embeddings": True,
            "linear_num_value_heads": 3,
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        # Of a head that predicts further tokens, which transformers does not build.
        keys.ignore("mtp_num_hidden_layers mtp_use_dedicated_embeddings")
        # Precision of the state, which is at least float32 here.
        keys.ignore("mamba_ssm_dtype")
        keys.fixed("attn_output_gate", True)
        keys.fixed("mlp_only_layers", [])
        return super().to_spec(keys)

    def projection_pieces(
        self, values: dict[str, Any], width: int, theirs: str, ours: str
    ) -> Iterator[Piece]:
        heads, head = values["num_heads"], values["head_dim"]
        convolved = (2 * heads // values["values_per_key"] + heads) * head
        yield Piece(f"{theirs}in_proj_qkv.weight", f"{ours}conv_proj.weight", (convolved, width))
        yield Piece(f"{theirs}in_proj_z.weight", f"{ours}gate_proj.weight", (heads * head, width))
        target = f"{ours}decay_proj.weight"
        for start, letter in ((0, "a"), (heads, "b")):
            into = (slice(start, start + heads),)
            yield Piece(f"{theirs}in_proj_{letter}.weight", target, (heads, width), into=into)
