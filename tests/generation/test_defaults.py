"""Settings of generation_config.json: followed, harmless, or refused; never passed over."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from archloop.errors import UserError
from archloop.generation import defaults
from archloop.generation.sampling import Sampling


def read(folder: Path, **settings: Any) -> defaults.Defaults:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return defaults.read(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": [5]},
        {"begin_suppress_tokens": [5]},
        {"bad_words_ids": [[5]]},
        {"forced_eos_token_id": 7},
        {"forced_bos_token_id": 1},
        {"sequence_bias": [[[5], -10.0]]},
        {"num_beams": 4},
        {"guidance_scale": 1.5},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 9},
        {"exponential_decay_length_penalty": [3, 1.1]},
        {"watermarking_config": {"bias": 2.5}},
        {"max_time": 1.0},
        {"do_sample": True, "typical_p": 0.9},
        {"do_sample": True, "eta_cutoff": 0.1},
        {"no_such_setting": 1},
    ],
    ids=str,
)
def test_what_could_change_tokens_is_refused_by_name(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"generation_config\.json: .*{list(settings)[-1]}"):
        read(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1, "early_stopping": True, "length_penalty": 0.5},
        {"suppress_tokens": None, "bad_words_ids": [], "no_repeat_ngram_size": 0},
        {
            "max_length": 20,
            "max_new_tokens": 9,
            "use_cache": False,
            "cache_implementation": "hybrid",
        },
        {"typical_p": 0.9, "epsilon_cutoff": 3e-4, "temperature": 0.1},
        {"guidance_scale": 1.0, "renormalize_logits": True, "prompt_lookup_num_tokens": 3},
        {"transformers_version": "5.0", "_from_model_config": True, "pad_token_id": 0},
    ],
    ids=str,
)
def test_what_changes_none_passes(settings: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, **settings).sampling == Sampling()


def test_every_setting_of_transformers_is_known() -> None:
    """A setting at its default passes, whatever version wrote the file."""
    known = transformers.GenerationConfig().to_dict()
    plain = transformers.GenerationConfig._get_default_generation_params()
    lacking = {key for key, value in known.items() if value is None} - defaults.UNDERSTOOD
    lacking -= defaults.INERT | defaults.OFF.keys() | defaults.OFF_WHEN_GREEDY.keys()
    assert not lacking
    for key, value in plain.items():
        if value is not None:
            defaults._check_known({key: value})
            defaults._check_known({"do_sample": True, key: value})


def test_stop_strings_are_followed(tmp_path: Path) -> None:
    assert read(tmp_path, stop_strings="END").stop_strings == ("END",)
    assert read(tmp_path, stop_strings=["a", "b"]).stop_strings == ("a", "b")
    for wrong in ([""], [1], 3):
        with pytest.raises(UserError, match=r"generation_config\.json"):
            read(tmp_path, stop_strings=wrong)
