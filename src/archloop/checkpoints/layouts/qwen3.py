"""Qwen3's dense models: Llama with normed queries and keys, and heads of any width."""

from archloop.checkpoints.keys import Keys
from archloop.checkpoints.layouts.llama import Llama
from archloop.errors import UserError
from archloop.stack.spec import StackSpec

_EXAMPLE = {
    "model_type": "qwen3",
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


class Qwen3(Llama):
    """As the module says; transformers' `Qwen3ForCausalLM`."""

    model_types = {"qwen3": "Qwen3ForCausalLM"}
    qk_norm = True
    head_dim = 128
    max_context = 32_768
    examples = (
        {**_EXAMPLE, "tie_word_embeddings": True, "max_window_layers": 2},
        {
            **_EXAMPLE,
            "rms_norm_eps": 1e-4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        # Says from which layer on attention has a window; none has where use_sliding_window is
        # false, and no other value is read.
        keys.ignore("max_window_layers")
        keys.fixed("use_sliding_window", False)
        keys.ignore("sliding_window")
        spec = super().to_spec(keys)
        if set(keys.get("layer_types", ["full_attention"])) != {"full_attention"}:
            raise UserError("layer_types of Qwen3 may only say 'full_attention'")
        return spec
