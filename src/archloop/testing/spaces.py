"""A small space with every rule, for strategies to search, and what a genome of it must keep."""

from typing import Any

from archloop.space.genome import Genome
from archloop.space.repair import repair
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.stack import cost

RICH: dict[str, Any] = {
    "ship": {"d_model": 512, "vocab_size": 8192},
    "proxy": {"d_model": 128},
    "num_blocks": [6, 8],
    "mixers": {
        "short_conv": {"kernel": [3, 5, 7]},
        "gqa": {"head_dim": [32, 64], "queries_per_kv": [1, 2]},
        "swa": {"head_dim": [32, 64], "window": [16, 32]},
    },
    "channel_mixers": {
        "swiglu": {"expansion": [1, 1.5, 2, 2.5, 3, 3.5, 4]},
        "moe": {"num_experts": 4, "expansion": [0.5, 0.75]},
    },
    "scope": {"short_conv.kernel": "block", "head_dim": "global"},
    "interleaving": {"min_global": 1},
    "sharing": {"weights": True, "state": True},
    "budget": {"num_params": 28_000_000},
}


def assert_valid(space: Space, genome: Genome) -> None:
    """All the rules of a space, checked on the genome and on both of its specs."""
    config, rules = space.config, space.config.interleaving
    ship, proxy = to_spec(space, genome, "ship"), to_spec(space, genome, "proxy", 300)
    assert repair(space, genome) == genome
    assert Genome.from_json(genome.to_json()) == genome
    assert len(genome.blocks) in config.num_blocks
    assert sum(map(space.has_global, genome.blocks)) >= rules.min_global
    assert ship.layout == proxy.layout == genome.layout
    for (_, _, mine), (_, _, other) in zip(cost.mixers(ship), cost.mixers(proxy), strict=True):
        assert mine.model_copy(update={"config": {}}) == other.model_copy(update={"config": {}})
        at_proxy = space.families[mine.name].at_proxy
        for gene, value in mine.config.items():
            assert other.config[gene] == at_proxy.get(gene, {}).get(value, value)
    if rules.rule == "periodic":
        assert genome.period is not None
        for index, block in enumerate(genome.blocks):
            like = genome.blocks[index % genome.period]
            assert space.alike(block, like)
    if config.budget is not None:
        away = abs(cost.num_params(ship) - config.budget.num_params)
        assert away <= config.budget.tolerance * config.budget.num_params
