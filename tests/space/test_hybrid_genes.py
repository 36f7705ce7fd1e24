"""What published hybrids need beside mixers and feed-forwards is a gene that a recipe can open."""

from typing import Any

import numpy as np
import pytest
import torch

from archloop.space.config import SpaceConfig
from archloop.space.opening import open_space
from archloop.space.specs import to_spec
from archloop.space.variation import mutate, sample
from archloop.stack import cost
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec

BASE: dict[str, Any] = {
    "ship": {"d_model": 128, "vocab_size": 512},
    "proxy": {"d_model": 64},
    "num_blocks": 3,
    "mixers": {"gqa": {"head_dim": 32}},
    "channel_mixers": {"swiglu": {"expansion": 2.0}},
}
OPENED: dict[str, dict[str, Any]] = {
    "head gates": {"mixers": {"gqa": {"head_dim": 32, "head_gate": [False, True]}}},
    "channel gates": {"mixers": {"gqa": {"head_dim": 32, "channel_gate": [False, True]}}},
    "partial rotary": {"mixers": {"gqa": {"head_dim": 32, "rope_fraction": [0.25, 0.5, 1.0]}}},
    "adapters": {
        "mixers": {"gqa": {"head_dim": 32, "adapter_rank": [0, 4]}},
        "channel_mixers": {"swiglu": {"expansion": 2.0, "adapter_rank": [0, 4]}},
        "sharing": {"weights": True, "channel_weights": True},
    },
    "parallel heads": {
        "mixers": {"gqa": {"head_dim": 32}, "mamba2": {"state_dim": 16}},
        "structure": {"num_mixers": [1, 2]},
        "block": {"combine": ["sum", "mean", "normed_mean"]},
        "scope": {"combine": "block"},
    },
    "single-branch layers": {"structure": {"halves": ["mixers", "channel_mixer", "both"]}},
    "side blocks": {"block": {"side": [False, True]}, "scope": {"side": "block"}},
    "sandwich norms": {"block": {"post_norms": [False, True]}},
    "multipliers": {
        "mixers": {
            "gqa": {"head_dim": 32, "input_multiplier": [0.5, 1.0], "multiplier": [1.0, 2.0]}
        },
        "channel_mixers": {"swiglu": {"expansion": 2.0, "multiplier": [0.5, 1.0]}},
        "block": {"residual_multiplier": [0.25, 1.0]},
        "stack": {"embedding_multiplier": [1.0, 12.0], "logits_divisor": [1.0, 8.0]},
    },
    "experts": {
        "channel_mixers": {
            "moe": {
                "expansion": 0.5,
                "router": ["lfm2", "kimi", "granite"],
                "shared_expansion": [0.0, 0.5],
                "shared_gate": [False, True],
                "latent_ratio": [0.0, 0.5],
                "activation": ["swiglu", "relu2"],
            }
        },
    },
    "norms of 1 + w": {"stack": {"norm_offset": [False, True]}},
}


def leaves(spec: StackSpec) -> set[tuple[str, Any]]:
    """Every setting of a spec with its value, wherever it stands."""
    found: set[tuple[str, Any]] = set()

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, key)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner, name)
        else:
            found.add((name, value))

    walk(spec.model_dump(), "")
    return found


def listed(section: Any, name: str = "") -> list[tuple[str, Any]]:
    """Each value of each gene that a part of a recipe opens."""
    if isinstance(section, dict):
        return [pair for key, inner in section.items() for pair in listed(inner, key)]
    return [(name, value) for value in section] if isinstance(section, list) else []


@pytest.mark.parametrize("what", OPENED)
def test_a_recipe_that_opens_it_proposes_every_value_and_builds(what: str) -> None:
    space, rng = open_space(SpaceConfig(**{**BASE, **OPENED[what]})), np.random.default_rng(3)
    genomes = [sample(space, rng) for _ in range(24)]
    genomes += [mutate(space, genome, rng) for genome in genomes]
    specs = [to_spec(space, genome, "ship") for genome in genomes]
    seen = set().union(*map(leaves, specs))
    parts = {key: OPENED[what].get(key, {}) for key in ("mixers", "channel_mixers", "block")}
    for gene, value in [*listed(parts), *listed(OPENED[what].get("stack", {}))]:
        assert (gene, value) in seen, f"{gene}={value} is never proposed"
    shapes = {(len(b.mixers), b.channel_mixer is not None) for s in specs for b in s.blocks}
    structure = OPENED[what].get("structure", {})
    assert len(shapes) >= max(len(each) for each in [*structure.values(), [1]])
    for spec in (specs[0], specs[-1]):
        decoder = Decoder(spec).eval()
        assert sum(p.numel() for p in decoder.parameters()) == cost.num_params(spec)
        assert bool(torch.isfinite(decoder(torch.arange(8)[None])).all())
