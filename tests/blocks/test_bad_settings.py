"""Configurations that cannot be built are refused with field, value and what is allowed."""

import pytest
import torch

from archloop import blocks, registry
from archloop.blocks.ops.rope import Rope

REFUSED = [
    ("swa", {"window": 0}, ["window", "0", "greater than or equal to 1"]),
    ("swa", {"head_dim": 128}, ["head_dim=128", "d_model=64", "[1, 2, 4, 8, 16, 32, 64]"]),
    ("swa", {"head_dim": 16, "queries_per_kv": 3}, ["queries_per_kv=3", "[1, 2, 4]"]),
    ("gla", {"head_dim": 48}, ["head_dim=48", "d_model=64", "[1, 2, 4, 8, 16, 32, 64]"]),
    ("gla", {"head_dim": 2, "key_ratio": 0.3}, ["key_ratio=0.3", "head_dim=2", "multiples"]),
    ("hgrn2", {"head_dim": 48}, ["head_dim=48", "d_model=64"]),
    ("hgrn2", {"lower_bound": 1.0}, ["lower_bound", "less than 1"]),
    ("mamba2", {"head_dim": 48}, ["head_dim=48", "expansion * d_model = 128", "64, 128]"]),
    ("mamba2", {"num_groups": 3}, ["num_groups=3", "num_heads=2", "[1, 2]"]),
    ("mamba2", {"core": "fft"}, ["core", "'recurrent' or 'conv'"]),
    ("gated_deltanet", {"head_dim": 48}, ["head_dim=48", "d_model=64"]),
    ("gated_deltanet", {"kernel": 0}, ["kernel", "greater than or equal to 1"]),
    ("kda", {"head_dim": 1}, ["head_dim", "greater than or equal to 2"]),
    ("mla", {"head_dim": 48}, ["head_dim=48", "d_model=64", "[1, 2, 4, 8, 16, 32, 64]"]),
    ("mamba", {"expansion": 1.01}, ["expansion=1.01", "d_model=64", "multiples of 1/d_model"]),
    ("mamba3", {"expansion": 1.01}, ["expansion=1.01", "d_model=64", "multiples of 1/d_model"]),
    ("mamba3", {"head_dim": 48}, ["head_dim=48", "expansion * d_model = 128", "64, 128]"]),
    ("moe", {"top_k": 9}, ["top_k=9", "num_experts=8", "1 to 8"]),
    ("moe", {"shared_expansion": 65}, ["shared_expansion", "65", "less than or equal to 64"]),
    ("moe", {"expansion": 1e9}, ["expansion", "less than or equal to 64"]),
    ("moe", {"num_groups": 2}, ["num_groups=2", "router='kimi'"]),
    ("moe", {"router": "granite", "normalize": False}, ["normalize=False", "granite", "True"]),
    ("moe", {"router": "kimi", "num_groups": 3}, ["num_groups=3", "num_experts=8", "[1, 2, 4, 8]"]),
    (
        "moe",
        {"router": "kimi", "num_groups": 4, "top_groups": 1, "top_k": 3},
        ["top_groups=1", "2 to 4"],
    ),
]


@pytest.mark.parametrize("name,config,words", REFUSED, ids=str)
def test_refusal_names_field_value_and_remedy(
    name: str, config: dict[str, object], words: list[str]
) -> None:
    kind = "mixers" if name in registry.names("mixers") else "channel_mixers"
    with pytest.raises(ValueError) as refusal:
        registry.get(kind, name).Config(**config).build(64)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("kind", ["mixers", "channel_mixers"])
def test_sizes_and_places_that_cannot_be_are_refused(kind: str) -> None:
    for name in registry.names(kind):
        config = registry.get(kind, name).Config()
        for index in (-1, 4):
            with pytest.raises(ValueError, match=rf"block_index={index}.*allowed: 0 to 3"):
                config.build(64, index, 4)
        for width in (0, -64):
            with pytest.raises(ValueError, match=f"d_model={width}"):
                config.build(width)


@pytest.mark.parametrize("kind", ["mixers", "channel_mixers"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused(kind: str, value: float) -> None:
    for name in registry.names(kind):
        config_class = registry.get(kind, name).Config
        for field, info in config_class.model_fields.items():
            if info.annotation in (float, float | None):
                with pytest.raises(ValueError, match=rf"(?s){field}.*finite"):
                    config_class(**{field: value})


def test_every_mixer_is_imported_by_its_class_name_alone() -> None:
    for name in dir(blocks):
        assert getattr(blocks, name).__name__ == name
    with pytest.raises(AttributeError, match=r"'gqa'; known: GQA"):
        blocks.gqa  # noqa: B018
    with pytest.raises(AttributeError, match=r"'Mamba4'; did you mean .*'Mamba3'"):
        blocks.Mamba4  # noqa: B018


def test_the_least_share_of_pairs_that_is_allowed_turns() -> None:
    gqa = registry.get("mixers", "gqa").Config
    settings = {"head_dim": 98, "num_heads": 1, "rope_over": "turning"}
    with pytest.raises(ValueError, match="turns nothing") as refusal:
        gqa(rope_fraction=0.001, **settings).sizes(98)
    least = float(str(refusal.value).rsplit(maxsplit=1)[-1])
    gqa(rope_fraction=least, **settings).sizes(98)
    freq_h = Rope(1e4, fraction=0.29).frequencies(100, torch.float64, torch.device("cpu"))
    assert int((freq_h > 0).sum()) == 29
