"""Granite 4.0-H's configurations: what is said in several ways, and what is refused."""

from typing import Any

import pytest

from archloop.checkpoints import families
from archloop.errors import UserError

LAYOUT = families.layout("granite_hybrid")
EXAMPLE: dict[str, Any] = dict(LAYOUT.examples[0])


def test_older_names_say_the_same() -> None:
    """As configurations on the hub have them."""
    spec = LAYOUT.read(EXAMPLE)
    older = {
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "position_embedding_type": "nope",
        "mamba_d_head": 12,
        "normalization_function": "rmsnorm",
        "init_method": "mup",
        "intermediate_size": 40,
        "rope_theta": 1e4,
        "rope_scaling": None,
    }
    assert LAYOUT.read({**EXAMPLE, **older}) == spec
    assert spec.layout == ["mamba2", "gqa", "mamba2", "gqa"]
    assert (spec.embedding_multiplier, spec.logits_divisor) == (12, 8)
    assert {block.residual_multiplier for block in spec.blocks} == {0.22}


def test_stacks_of_one_kind_are_said() -> None:
    for kind in ("linear_attention", "full_attention"):
        spec = LAYOUT.read({**EXAMPLE, "layer_types": [kind] * 4})
        assert LAYOUT.read(LAYOUT.write(spec)).layout == spec.layout
    assert LAYOUT.read({**EXAMPLE, "layer_types": None}).layout == ["mamba2"] * 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"num_local_experts": 8, "num_experts_per_tok": 9, "intermediate_size": 40},
            "top_k=9 exceeds num_experts=8",
        ),
        ({"num_local_experts": None, "intermediate_size": 20}, "expert FFN width 20"),
        ({"layer_types": ["mamba"]}, "must list num_hidden_layers=4"),
        ({"layer_types": ["x"] * 4}, "'x'"),
        ({"position_embedding_type": "alibi"}, "'alibi' is not supported"),
        ({"mamba_d_head": 16}, "are not mamba_expand"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
    ],
)
def test_what_is_not_built_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        LAYOUT.read({**EXAMPLE, **change})


def test_blocks_that_differ_in_their_factor_cannot_be_said() -> None:
    spec = LAYOUT.read(EXAMPLE)
    odd = spec.blocks[1].model_copy(update={"residual_multiplier": 1.0})
    with pytest.raises(UserError, match=r"block 1 has residual_multiplier=1\.0"):
        LAYOUT.write(spec.replace(blocks=(spec.blocks[0], odd, *spec.blocks[2:])))
