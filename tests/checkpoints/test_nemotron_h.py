"""Nemotron-H's configurations: what is said in several ways, and what is refused."""

from typing import Any

import pytest

from archloop.checkpoints import families
from archloop.errors import UserError
from archloop.stack import presets
from archloop.stack.spec import BlockSpec, MixerSpec

LAYOUT = families.layout("nemotron_h")
EXAMPLE: dict[str, Any] = dict(LAYOUT.examples[0])
SPARSE: dict[str, Any] = dict(LAYOUT.examples[2])


def test_a_pattern_of_letters_and_older_names_say_the_same() -> None:
    spec = LAYOUT.read(EXAMPLE)
    plain = {key: value for key, value in EXAMPLE.items() if key != "layers_block_type"}
    assert LAYOUT.read({**plain, "hybrid_override_pattern": "M-*-M"}) == spec
    older = ["mamba", "mlp", "attention", "mlp", "mamba"]
    assert LAYOUT.read({**plain, "layers_block_type": older, "num_hidden_layers": 5}) == spec
    assert spec.layout == ["mamba2", "-", "gqa", "-", "mamba2"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({**SPARSE, "n_group": 4}, "num_groups=4"),
        ({**SPARSE, "moe_latent_size": 20}, "latent FFN width 20"),
        ({"layers_block_type": ["full_attention", "x"]}, "'x'"),
        ({"layers_block_type": None}, "must list"),
        ({"num_hidden_layers": 4}, "5 layers are listed"),
        ({"use_bias": True}, "use_bias"),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
        ({"sliding_window": 512}, "sliding_window.*not understood"),
    ],
)
def test_what_is_not_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        LAYOUT.read({**EXAMPLE, **change})


def test_what_the_family_cannot_say() -> None:
    spec = LAYOUT.read(EXAMPLE)
    turned = BlockSpec(mixers=(MixerSpec(name="gqa", config={"qk_norm": False, "head_dim": 16}),))
    for blocks, named in (
        (presets.load("llama-3.2-1b").blocks, "block 0 is gqa and swiglu"),
        ((BlockSpec(),), "block 0 is empty"),
        ((turned,), "turns by position"),
    ):
        with pytest.raises(UserError, match=named):
            LAYOUT.write(spec.replace(blocks=blocks))
