"""A `config.json` whose every key is read, or known to change nothing.

What is passed over could change results, so a key that a layout did not ask for is refused by name.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from archloop.errors import UserError


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


INERT = _keys(
    # Who wrote the file, and labels of classification heads.
    "model_type architectures transformers_version _name_or_path name_or_path _commit_hash "
    "unsloth_version unsloth_fixed is_llama_config transformers.js_config "
    "id2label label2id problem_type num_labels finetuning_task "
    "task_specific_params tokenizer_class dtype torch_dtype use_bfloat16 "
    # What a call returns or caches, and by which implementation.
    "output_hidden_states output_attentions output_router_logits return_dict use_return_dict "
    "use_cache chunk_size_feed_forward attn_implementation _attn_implementation torchscript "
    "_attn_implementation_autoset pretraining_tp tf_legacy_loss use_mamba_kernels "
    "cache_implementation "
    # Training.
    "initializer_range initializer_factor attention_dropout hidden_dropout resid_pdrop embd_pdrop "
    "attn_pdrop dropout router_aux_loss_coef router_jitter_noise "
    # Special tokens, which `tokens` reads, and settings of generation that an old configuration
    # repeats: generation_config.json decides.
    "bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id "
    "max_length max_new_tokens do_sample temperature top_k top_p"
)
"""Keys that no forward pass depends on."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu", "swish"),
    "rope_interleaved": (False,),
    "use_sliding_window": (False,),
}
"""Keys that change nothing at these values, where a layout does not read them itself."""

MOST_LAYERS = 4096
"""Bound on what a file can make us list before its tensors are looked at."""


class Keys:
    """The keys of a configuration; asking for one notes that it was understood.

    Attributes:
        model_type: names the family.
    """

    def __init__(self, config: Mapping[str, Any], model_type: str) -> None:
        self.model_type = model_type
        self._all = config
        self._said = {key: value for key, value in config.items() if value is not None}
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._said

    def is_null(self, key: str) -> bool:
        """Whether the key is there and says null."""
        return key in self._all and self._all[key] is None

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where it is absent or null."""
        self._read.add(key)
        return self._said.get(key, default)

    def number(self, key: str, default: int | None = None, most: int = 1 << 30) -> int:
        """A whole number from 1 to `most`.

        Raises:
            UserError: another value, or none without a default.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"config key {key!r} must be a positive whole number, not {value!r}")
        if value > most:
            raise UserError(f"config key {key!r} is {value}; at most {most}")
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number from 0 up. Raises as `number`."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"config key {key!r} must be 0 or more, not {value!r}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number above 0. Raises as `number`."""
        value = self.get(key, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:
            raise UserError(f"config key {key!r} must be a number above 0, not {value!r}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false. Raises as `number`."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"config key {key!r} must be true or false, not {value!r}")
        return value

    def fixed(self, key: str, *allowed: Any) -> None:
        """A key that may only say what this family is built as.

        Raises:
            UserError: it says something else.
        """
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise UserError(f"config key {key!r} is {value!r}; only {allowed[0]!r} is supported")

    def ignore(self, keys: str) -> None:
        """Note keys, divided by spaces, that no implementation of this family reads."""
        self._read |= _keys(keys)

    @contextmanager
    def inside(self, key: str) -> Iterator["Keys"]:
        """The keys of an object, all of which must be read within too.

        Raises:
            UserError: it is no object, or a key in it was not read.
        """
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise UserError(f"config key {key!r} must be an object, not {value!r}")
        named = {f"{key}.{name}": inner for name, inner in value.items()}
        keys = Keys(named, self.model_type)
        yield keys
        keys.finish()

    def finish(self) -> None:
        """Refuse keys that nobody asked for.

        Raises:
            UserError: there is one that could change results; names it.
        """
        for key in sorted(self._said.keys() - self._read - INERT):
            value = self._said[key]
            if key in NEUTRAL:
                self.fixed(key, *NEUTRAL[key])
                continue
            raise UserError(
                f"config key {key!r} (value {value!r}) is not understood for {self.model_type} "
                "and could change results; remove it only if it is known to change none"
            )
