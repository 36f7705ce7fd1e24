"""Every part of a mixer has the parameters that its config declares for that part."""

from collections import Counter
from typing import Any

import pytest
import torch

from archloop import registry
from archloop.blocks import checks
from archloop.blocks.ops import delta_rule
from archloop.testing.work import WorkCounter

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mamba3": [{}, {"rank": 2}, {"rank": 4}],
    "mamba2": [{}, {"core": "conv"}, {"num_groups": 2}],
    "mamba": [{}, {"core": "conv"}],
    "gated_deltanet": [{}, {"core": "conv"}, {"values_per_key": 1}],
    "kda": [{}, {"core": "conv"}],
    "gqa": [{}, {"head_gate": True}, {"qk_norm": False}],
    "cfc": [{}, {"mode": "pure"}],
    "short_conv": [{}, {"bias": True}],
    "moe": [
        {},
        {"shared_expansion": 0.5, "shared_gate": True},
        {"shared_expansion": 0.5, "activation": "relu2", "latent_ratio": 0.5},
    ],
    "gla": [{}, {"key_ratio": 1.0}],
}
CASES = [
    (kind, name, settings)
    for kind in ("mixers", "channel_mixers")
    for name in registry.names(kind)
    for settings in VARIANTS.get(name, [{}])
]


def parts(module: torch.nn.Module) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        counted[name.partition(".")[0]] += parameter.numel()
    return dict(counted)


@pytest.mark.parametrize("kind, name, settings", CASES, ids=str)
@pytest.mark.parametrize("d_model", [64, 128])
def test_parameters_by_part(kind: str, name: str, settings: dict[str, Any], d_model: int) -> None:
    plugin = registry.get(kind, name)
    config = plugin.Config(**settings)
    for consumer in (False, True) if getattr(plugin, "shareable", False) else (False,):
        with torch.device("meta"):
            module = config.build(d_model, consumer=consumer)
        assert parts(module) == config.param_terms(d_model, consumer=consumer)
        assert sum(parts(module).values()) == config.num_params(d_model, consumer=consumer)


def test_a_count_that_is_wrong_names_the_part() -> None:
    plugin = registry.get("mixers", "short_conv")

    class Config(plugin.Config):
        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            return super().param_terms(d_model) | {"conv": 7}

    with pytest.raises(checks.ContractError, match=r"the module has 16576 \(conv 7, not 192\)"):
        checks.parameters_equal_the_module(plugin.Config().build(64), Config(), 64)


def test_value_heads_of_a_key_head_share_its_scores() -> None:
    declared, measured = [], []
    for keys, per_key in ((1, 4), (4, 1)):
        config = registry.get("mixers", "gated_deltanet").Config(
            head_dim=16, num_key_heads=keys, values_per_key=per_key
        )
        declared.append(config.flop_terms(64, 64, 0, consumer=True)["read"])
        qk, v = torch.randn(1, keys, 64, 16), torch.randn(1, 4, 64, 16)
        g, states = -torch.rand(1, 4, 64, 1), torch.zeros(1, 4, 2, 16, 16)
        with WorkCounter() as work:
            delta_rule.read(qk, qk, v, g, states)
        measured.append(work.matmul_flops)
    assert declared[1] - declared[0] == measured[1] - measured[0] > 0
