"""How a checkpoint says that it should generate: `generation_config.json`, to its last key.

Every key is known here, or refused: what is passed over could change tokens. A setting that we lack
passes where its value switches it off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archloop.checkpoints import files, tokens
from archloop.errors import UserError
from archloop.generation.sampling import GREEDY, Sampling


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


UNDERSTOOD = _keys(
    "do_sample temperature top_k top_p min_p repetition_penalty stop_strings "
    "bos_token_id eos_token_id pad_token_id"
)
INERT = _keys(
    # Notes about the file, and what a call returns beside the tokens.
    "transformers_version _from_model_config _name_or_path _commit_hash trust_remote_code "
    "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate "
    # How it is computed: caches, compiling, guesses that are verified.
    "use_cache cache_implementation cache_config max_cache_len compile_config disable_compile "
    "prefill_chunk_size low_memory continuous_batching_config is_assistant num_assistant_tokens "
    "num_assistant_tokens_schedule assistant_confidence_threshold assistant_early_exit "
    "assistant_lookbehind target_lookbehind assistant_ensemble_weight prompt_lookup_num_tokens "
    "max_matching_ngram_size speculation_type use_mtp "
    # Lengths, which a caller states here; probabilities, which are normalised anyway; NaN, which
    # ends a generation here; encoders, which no model here has; beams, of which there is one.
    "max_length max_new_tokens renormalize_logits remove_invalid_values decoder_start_token_id "
    "encoder_repetition_penalty encoder_no_repeat_ngram_size early_stopping length_penalty"
)
OFF: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "token_healing": (False,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "dola_layers": (),
    "max_time": (),
}
"""Settings that we lack, and the values that switch them off; null does always."""
OFF_WHEN_GREEDY: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
}
"""As `OFF`; they act on draws only."""


@dataclass(frozen=True)
class Defaults:
    """What a checkpoint says about generating.

    Attributes:
        sampling: greedy unless ``do_sample`` is true.
        stop_strings: a reply ends before the first of these.
    """

    sampling: Sampling = GREEDY
    stop_strings: tuple[str, ...] = ()


def read(folder: Path) -> Defaults:
    """The defaults of a checkpoint's folder.

    Raises:
        UserError: a setting that is unknown or that we lack and that could change tokens, or a
            value that is not allowed; names the file and the key.
    """
    said = files.read_json(folder, tokens.GENERATION) or {}
    said = {key: value for key, value in said.items() if value is not None}
    try:
        _check_known(said)
        return Defaults(_sampling(said), _stop_strings(said.get("stop_strings", ())))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder / tokens.GENERATION}: {error}") from error


def _check_known(said: Mapping[str, Any]) -> None:
    greedy = not said.get("do_sample", False)
    for key in sorted(said.keys() - UNDERSTOOD - INERT):
        off = OFF.get(key, OFF_WHEN_GREEDY.get(key))
        if off is None:
            raise UserError(
                f"setting {key!r} (value {said[key]!r}) is not known and could change tokens; "
                "remove it only if it is known to change none"
            )
        if said[key] not in off and not (greedy and key in OFF_WHEN_GREEDY):
            allowed = " or ".join(repr(value) for value in (*off, None))
            raise UserError(
                f"{key}={said[key]!r} is not supported and would change tokens; allowed: {allowed}"
            )


def _sampling(said: Mapping[str, Any]) -> Sampling:
    drawn = said.get("do_sample", False)
    if not isinstance(drawn, bool):
        raise UserError(f"do_sample={drawn!r} must be true or false")

    def number(key: str, default: float) -> float:
        return float(said.get(key, default))

    greedy = Sampling(number("repetition_penalty", 1.0))
    if not drawn:
        return greedy
    return replace(
        greedy,
        temperature=number("temperature", 1.0),
        top_k=said.get("top_k") or None,
        top_p=number("top_p", 1.0),
        min_p=number("min_p", 0.0),
    )


def _stop_strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(string, str) and string for string in strings):
        raise UserError(f"stop_strings={value!r} must be texts, none of them empty")
    return strings
