"""Every genome that leaves a space keeps its rules; a recipe that cannot be met says why."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from archloop.space.checking import check_sequence_length
from archloop.space.config import SpaceConfig
from archloop.space.encoding import identity
from archloop.space.features import features, summary
from archloop.space.genome import Genome
from archloop.space.opening import open_space
from archloop.space.operators import applicable
from archloop.space.repair import repair
from archloop.space.seeding import from_layout, from_spec
from archloop.space.specs import to_spec
from archloop.space.variation import crossover, mutate, sample
from archloop.stack import cost
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from space.spaces import NAMED, RICH, SMALL, assert_valid, changed, named

every_space = pytest.mark.parametrize("name", NAMED)
seeds = st.integers(0, 2**32 - 1)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- what leaves a space ------------------------------------------------------------------------


@every_space
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_a_walk_of_all_operators_keeps_every_rule(name: str, seed: int) -> None:
    space, rng = named(name), generator(seed)
    a, b = sample(space, rng), sample(space, rng)
    assert_valid(space, a)
    for _ in range(6):
        a, b = mutate(space, a, rng), crossover(space, a, b, rng)
        assert_valid(space, a)
        assert_valid(space, b)


@every_space
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_mutation_changes_the_genome_and_is_repeatable(name: str, seed: int) -> None:
    space = named(name)
    genome = sample(space, generator(seed))
    child = mutate(space, genome, generator(seed + 1))
    assert child != genome
    assert child == mutate(space, genome, generator(seed + 1))
    assert genome == sample(space, generator(seed))


OPERATORS = [(name, operator) for name in NAMED for operator in applicable(named(name))]


@pytest.mark.parametrize("name, operator", OPERATORS, ids=lambda x: getattr(x, "__name__", x))
def test_each_operator_acts_and_repairs_to_a_valid_genome(name: str, operator: Any) -> None:
    space = named(name)
    rng, num_changed = generator(0), 0
    for _ in range(40):
        genome = sample(space, rng)
        child = operator(space, genome, rng)
        if child is None:
            continue
        try:
            child = repair(space, child)
        except ValueError:
            continue
        assert_valid(space, child)
        num_changed += child != genome
    assert num_changed >= 5


def test_sampling_reaches_pure_and_mixed_stacks_sharing_and_every_depth() -> None:
    space, rng = named("rich"), generator(0)
    genomes = [sample(space, rng) for _ in range(300)]
    kinds = {len(set(genome.layout)) for genome in genomes}
    assert kinds == {1, 2, 3}
    assert {len(genome.blocks) for genome in genomes} == {6, 8}
    blocks = [block for genome in genomes for block in genome.blocks]
    mixers = [mixer for block in blocks for mixer in block.mixers]
    assert any(mixer.weights_from is not None for mixer in mixers)
    assert any(mixer.state_from is not None for mixer in mixers)


def test_a_child_has_blocks_of_both_parents_at_their_depth() -> None:
    space, rng = open_space(changed(budget=None, sharing={}, num_blocks=8)), generator(1)
    a, b = from_layout(space, ["gqa"] * 8), from_layout(space, ["short_conv"] * 7 + ["gqa"])
    children = [crossover(space, a, b, rng).layout for _ in range(40)]
    for child in children:
        assert all(name in (x, y) for name, x, y in zip(child, a.layout, b.layout, strict=True))
        # Two cuts: the stretches from one parent and the other alternate at most twice.
        assert sum(x != y for x, y in itertools.pairwise(child)) <= 3
    assert len({tuple(child) for child in children}) > 10


def test_sharing_follows_its_source_when_blocks_move() -> None:
    space = open_space(changed(budget=None, num_blocks=[3, 4], sharing={"state": True}))
    genome = from_layout(space, ["gqa", "short_conv", "gqa"])
    block = genome.blocks[2]
    consumer = block.with_part(0, block.mixers[0].sharing("state_from", 0))
    genome = repair(space, genome.with_block(2, consumer))
    rng = generator(0)
    for _ in range(50):
        child = mutate(space, genome, rng)
        assert_valid(space, child)
        for mixer in (block.mixers[0] for block in child.blocks):
            if mixer.state_from is not None:
                assert child.blocks[mixer.state_from].mixers[0].name == mixer.name


def test_a_pattern_is_never_longer_than_its_stack() -> None:
    interleaving = {"rule": "periodic", "period": [2, 6], "min_global": 2}
    config = changed(interleaving=interleaving, num_blocks=[4, 8], budget=None)
    space, rng = open_space(config), generator(0)
    genome = sample(space, rng)
    lengths = set()
    for _ in range(1000):
        genome = mutate(space, genome, rng)
        assert genome.period is not None
        assert genome.period <= len(genome.blocks)
        assert_valid(space, genome)
        lengths.add((genome.period, len(genome.blocks)))
    assert {(4, 4), (6, 8)} <= lengths


@every_space
def test_a_built_decoder_has_the_parameters_that_the_budget_counted(name: str) -> None:
    space, rng = named(name), generator(3)
    for _ in range(2):
        genome = sample(space, rng)
        for spec in (to_spec(space, genome, "ship"), to_spec(space, genome, "proxy", 300)):
            with torch.device("meta"):
                decoder = Decoder(spec)
            assert sum(p.numel() for p in decoder.parameters()) == cost.num_params(spec)
    decoder = Decoder(spec)
    logits = decoder(torch.randint(0, 300, (2, 9)))
    assert logits.shape == (2, 9, 300)
    assert logits.isfinite().all()


# --- specs in and out ---------------------------------------------------------------------------


@every_space
def test_a_spec_is_read_back_as_the_genome_that_gave_it(name: str) -> None:
    space, rng = named(name), generator(5)
    for _ in range(10):
        spec = to_spec(space, sample(space, rng), "ship")
        assert to_spec(space, from_spec(space, spec), "ship") == spec


def test_a_preset_like_spec_seeds_a_space_of_other_widths() -> None:
    layout = ["short_conv", "short_conv", "gqa", "short_conv", "gqa", "short_conv"]
    blocks = [
        {
            "mixers": [{"name": name, "config": {"kernel": 3} if name == "short_conv" else {}}],
            "channel_mixer": {"name": "swiglu", "config": {"expansion": 4.5}},
        }
        for name in layout
    ]
    spec = StackSpec(d_model=1024, vocab_size=65536, blocks=blocks)
    genome = from_spec(named("rich"), spec)
    assert genome.layout == layout
    assert genome.global_genes == {"head_dim": 64}, "the default of the mixer's config"
    assert_valid(named("rich"), genome)
    with pytest.raises(ValueError, match="blocks; the space allows"):
        from_spec(named("rich"), spec.replace(blocks=spec.blocks[:5]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixers": []}, r"has channel_mixer; space.structure.halves are"),
        ({"post_norms": True}, "post_norms"),
        ({"mixers": [{"name": "mamba2"}]}, "'mamba2' is not in the space"),
        ({"mixers": [{"name": "short_conv", "config": {"kernel": 4}}]}, r"kernel=4: allowed are"),
        ({"mixers": [{"name": "short_conv", "config": {"bias": True}}]}, "bias=True; in the space"),
    ],
)
def test_a_spec_outside_the_space_is_refused_with_the_reason(
    change: dict[str, Any], message: str
) -> None:
    space = named("small")
    spec = to_spec(space, from_layout(space, ["short_conv"]), "ship").model_dump()
    spec["blocks"] = [spec["blocks"][0] | change]
    with pytest.raises(ValueError, match=message):
        from_spec(space, StackSpec(**spec))


def test_a_layout_outside_the_space_is_refused_with_a_near_name() -> None:
    with pytest.raises(ValueError, match=r"layout\[1\]='short_konv'.*did you mean 'short_conv'"):
        from_layout(named("small"), ["gqa", "short_konv"])
    with pytest.raises(ValueError, match=r"3 blocks; the space allows \[1, 2\]"):
        from_layout(named("small"), ["gqa"] * 3)


def test_a_periodic_space_finds_the_period_of_a_layout() -> None:
    space = named("periodic")
    assert from_layout(space, ["short_conv", "short_conv", "gqa"] * 2).period == 3
    with pytest.raises(ValueError, match="repeats with no period from 2 to 4"):
        from_layout(space, ["gqa", "gqa", "short_conv", "gqa", "swa", "short_conv"])


def test_the_proxy_vocabulary_may_come_later() -> None:
    genome = sample(named("rich"), generator(0))
    with pytest.raises(ValueError, match="give vocab_size"):
        to_spec(named("rich"), genome, "proxy")
    assert to_spec(named("rich"), genome, "proxy", 99).vocab_size == 99
    small = sample(named("small"), generator(0))
    assert to_spec(named("small"), small, "proxy").vocab_size == 256


# --- the space as a whole -----------------------------------------------------------------------


def test_size_counts_the_genomes_of_a_small_space() -> None:
    space, rng = named("small"), generator(0)
    seen = {sample(space, rng) for _ in range(500)}
    # Per block: two kernels of short_conv, or gqa; one or two blocks.
    assert space.size == 3 + 9 == len(seen)


def test_size_counts_patterns_of_a_periodic_space() -> None:
    config = SMALL | {"num_blocks": 4, "interleaving": {"rule": "periodic", "period": [1, 2]}}
    assert open_space(SpaceConfig(**config)).size == 3 + 9


def test_description_and_summary_name_every_family() -> None:
    space = named("rich")
    assert all(name in space.describe() for name in space.mixers + space.channel_mixers)
    found = summary(space, from_layout(space, ["gqa"] + ["short_conv"] * 5))
    assert found == {
        "num_blocks": 6, "num_short_conv": 5, "num_gqa": 1, "num_swa": 0, "num_sharing": 0,
    }  # fmt: skip


def test_proxy_sequences_hold_the_largest_window_four_times() -> None:
    check_sequence_length(named("rich"), 128)
    with pytest.raises(ValueError, match=r"127 tokens.*the 32 tokens that swa sees.*at least 128"):
        check_sequence_length(named("rich"), 127)
    check_sequence_length(named("small"), 20)
    with pytest.raises(ValueError, match=r"the 5 tokens that short_conv sees"):
        check_sequence_length(named("small"), 19)


# --- recipes that are refused -------------------------------------------------------------------


def rich_mixer(**genes: Any) -> dict[str, Any]:
    return {"mixers": RICH["mixers"] | genes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (rich_mixer(gqq={}), r"space.mixers: unknown mixer 'gqq'; did you mean 'gqa'"),
        ({"channel_mixers": {"swigloo": {}}}, r"unknown channel mixer 'swigloo'.*'swiglu'"),
        (rich_mixer(gqa={"headdim": [32]}), r"gqa.headdim: .*did you mean 'head_dim'"),
        (
            rich_mixer(short_conv={"kernel": [3, 0]}),
            r"short_conv.kernel=0 is not allowed.*usual values: 3, 5, 7",
        ),
        (rich_mixer(short_conv={"kernel": "wide"}), r"short_conv.kernel='wide' is not allowed"),
        (rich_mixer(short_conv={"kernel": []}), r"kernel=\[\]: give at least one value"),
        (rich_mixer(gqa={"qk_norm": [True, False]}), r"qk_norm=.*not a gene.*genes of gqa: adap"),
        ({"scope": {"kernal": "block"}}, r"space.scope.kernal: .*did you mean 'kernel'"),
        ({"scope": {"swiglu.expansion": "family"}}, r"budget moves this gene block by block"),
        (
            rich_mixer(swa={"head_dim": [16, 64]}) | {"scope": {"head_dim": "global"}},
            r"head_dim is global but swa lists \[16, 64\] and gqa \[32, 64\]",
        ),
        ({"interleaving": {"min_global": 1}, "mixers": {"short_conv": {}}}, "add gqa to space.mix"),
        (
            {"proxy": {"d_model": 96}} | rich_mixer(gqa={"head_dim": 64, "queries_per_kv": 1}),
            r"head_dim=64, queries_per_kv=1 cannot be built at proxy.d_model=96: head_dim",
        ),
        (
            {"channel_mixers": {"swiglu": {"expansion": [2, 2.01, 3]}}},
            r"expansion=2.0 and expansion=2.01 coincide at proxy.d_model=128 \(.*d_ff=256.*; widen",
        ),
        (
            {"budget": {"num_params": 90e6}},
            r"=90,000,000: no spec meets it \(.* nearest",
        ),
        ({"budget": {"num_params": 28e6, "free": "swigl.expansion"}}, "did you mean 'swiglu'"),
        ({"budget": {"num_params": 28e6, "free": "moe.top_k"}}, "list the values that top_k may"),
        (
            {
                "channel_mixers": {"moe": {"top_k": [1, 2]}},
                "budget": {"num_params": 28e6, "free": "moe.top_k"},
            },
            r"free='moe.top_k': 1 and 2 have equally many parameters",
        ),
        (
            {"channel_mixers": {"swiglu": {"expansion": [1 + i / 4 for i in range(9)]}}},
            "9 values; give at most 8",
        ),
    ],
)
def test_a_recipe_that_cannot_be_met_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_space(changed(**({"scope": {}} | changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"mixres": {}},
        {"num_blocks": 0},
        {"num_blocks": []},
        {"mixers": {}},
        {"scope": {"kernel": "everywhere"}},
        {"mixers": {"swiglu": {}}},
        {"interleaving": {"min_global": 7}},
        {"interleaving": {"rule": "periodic", "period": [7, 8]}},
        {"interleaving": {"rule": "periodic", "period": [3, 2]}},
        {"budget": {"num_params": 0}},
        {"ship": {"d_model": 512}},
    ],
    ids=str,
)
def test_a_section_of_the_wrong_shape_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        changed(**changes)


def test_genomes_from_elsewhere_are_refused() -> None:
    space = named("small")
    genome = from_layout(space, ["short_conv"])
    block = genome.blocks[0]
    mixer = block.mixers[0]
    for wrong, message in (
        (genome.replace(period=1), "period=1; the space is free"),
        (genome.replace(global_genes={"kernel": 3}), r"global_genes: genes \['kernel'\]"),
        (block.with_part(0, mixer.model_copy(update={"genes": {"kernel": 9}})), r"kernel=9: allow"),
        (block.with_part(0, mixer.model_copy(update={"name": "swiglu"})), "not in space.mixers"),
    ):
        other = wrong if isinstance(wrong, Genome) else genome.replace(blocks=(wrong,))
        with pytest.raises(ValueError, match=message):
            repair(space, other)


@every_space
def test_genomes_have_one_identity_where_they_have_one_spec(name: str) -> None:
    space, rng = named(name), generator(2)
    genomes = [sample(space, rng) for _ in range(12)]
    genomes += [mutate(space, genome, rng) for genome in genomes]
    # Genes of families that no block has leave the spec as it is.
    genomes += [genome.replace(family_genes=genomes[0].family_genes) for genome in genomes]
    specs = [to_spec(space, genome, "ship") for genome in genomes]
    keys = [identity(space, genome) for genome in genomes]
    for i, j in itertools.combinations(range(len(genomes)), 2):
        assert (keys[i] == keys[j]) == (specs[i] == specs[j])
    if space.family_genes:
        assert len(set(keys)) < len(set(genomes))


def test_features_tell_apart_what_a_surrogate_must_tell_apart() -> None:
    space = named("rich")
    layouts = [
        ["gqa"] + ["short_conv"] * 5,
        ["short_conv"] * 5 + ["gqa"],
        ["gqa", "gqa"] + ["short_conv"] * 4,
        ["gqa", "short_conv", "gqa"] + ["short_conv"] * 3,
        ["gqa", "swa"] + ["short_conv"] * 4,
        ["gqa"] + ["short_conv"] * 7,
    ]
    rows = np.stack([features(space, from_layout(space, layout)) for layout in layouts])
    assert len(np.unique(rows, axis=0)) == len(layouts)
    genome = from_layout(space, layouts[0])
    wider = genome.replace(global_genes={"head_dim": 64})
    assert (features(space, genome) != features(space, wider)).sum() >= 1
    assert np.abs(rows).max() <= 3
