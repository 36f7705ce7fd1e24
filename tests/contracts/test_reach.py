"""How far back a mixer sees, and whether exactly: against what its outputs depend on."""

from typing import Any

import pytest
import torch

from archloop import registry

D_MODEL, TIME = 64, 40
NAMES = registry.names("mixers")
SHORT: dict[str, list[dict[str, Any]]] = {
    "swa": [{"window": 8}, {"window": 1}],
    "short_conv": [{"kernel": 3}, {"kernel": 7}],
    "mamba": [{"core": "conv"}],
    "mamba2": [{"core": "conv"}],
    "gated_deltanet": [{"core": "conv"}],
    "kda": [{"core": "conv"}],
}


def farthest(mixer: torch.nn.Module) -> int:
    """The farthest token that an output depends on, counted back from it."""
    x_BTD = torch.randn(1, TIME, D_MODEL, dtype=torch.float64, requires_grad=True)
    y_BTD, _ = mixer(x_BTD)
    (gradient_BTD,) = torch.autograd.grad(y_BTD[:, -1].square().sum(), x_BTD)
    return TIME - 1 - int(gradient_BTD[0].abs().amax(-1).nonzero().min())


@pytest.mark.parametrize("name, settings", [(n, s) for n in SHORT for s in SHORT[n]], ids=str)
def test_a_mixer_sees_as_far_as_its_config_says(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = registry.get("mixers", name).Config(**settings)
    assert farthest(config.build(D_MODEL).double()) == config.reach(D_MODEL)


@pytest.mark.parametrize("name", NAMES)
def test_a_mixer_without_a_reach_sees_everything(name: str) -> None:
    torch.manual_seed(0)
    config = registry.get("mixers", name).Config()
    if config.reach(D_MODEL) is None:
        assert farthest(config.build(D_MODEL).double()) == TIME - 1


HALVES = {"cfc", "hgrn2"}
"""Their first block forgets half of its state at each token, by their papers' design."""


@pytest.mark.parametrize("name", NAMES)
def test_the_past_counts_from_the_first_step_of_training_on(name: str) -> None:
    """What is forgotten at once at the initial weights has no gradient to be learnt by."""
    torch.manual_seed(0)
    config = registry.get("mixers", name).Config()
    if config.reach(D_MODEL) is not None:
        pytest.skip("sees a few tokens")
    x_BTD = torch.randn(1, TIME, D_MODEL, dtype=torch.float64, requires_grad=True)
    y_BTD, _ = config.build(D_MODEL).double()(x_BTD)
    (gradient_BTD,) = torch.autograd.grad(y_BTD[0, -1].square().sum(), x_BTD)
    of_token_T = gradient_BTD[0].norm(dim=-1)
    assert of_token_T[-33] > (2.0**-48 if name in HALVES else 1e-6) * of_token_T[-1]


def test_full_attention_alone_is_global() -> None:
    found = {n for n in NAMES if registry.get("mixers", n).Config().is_global(D_MODEL)}
    assert found == {"gqa", "mla"}


def test_configs_coincide_where_only_sizes_differ_by_rounding() -> None:
    swiglu = registry.get("channel_mixers", "swiglu").Config
    assert swiglu(expansion=2.0).signature(64) == swiglu(expansion=2.01).signature(64)
    assert swiglu(expansion=2.0).signature(1024) != swiglu(expansion=2.01).signature(1024)
    gqa = registry.get("mixers", "gqa").Config
    assert gqa(rope_theta=1e4).signature(64) != gqa(rope_theta=1e6).signature(64)
    # Four heads of 16: four queries to a key is what none given comes to.
    explicit = gqa(head_dim=16, queries_per_kv=4)
    assert explicit.signature(64) == gqa(head_dim=16).signature(64)


def test_configs_with_other_key_heads_do_not_coincide() -> None:
    delta = registry.get("mixers", "gated_deltanet").Config
    one = delta(head_dim=16, num_key_heads=4, values_per_key=1)
    other = delta(head_dim=16, num_key_heads=2, values_per_key=2)
    assert one.num_params(64) != other.num_params(64)
    assert one.signature(64) != other.signature(64)
