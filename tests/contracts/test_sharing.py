"""What must hold for every mixer that shares its features: a consumer reads, never writes."""

from typing import Any

import pytest
import torch

from archloop import registry
from archloop.blocks.base import Span
from archloop.stack import cost
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, MixerSpec, StackSpec
from archloop.testing import modules as kit

Case = tuple[str, dict[str, Any]]
WIDTH = kit.D_MODEL
SHAREABLE = [n for n in registry.names("mixers") if registry.get("mixers", n).shareable]
CASES = [case for case in kit.cases("mixers", registry.shipped("mixers")) if case[0] in SHAREABLE]


def stack(name: str, config: dict[str, str], **second: int) -> StackSpec:
    blocks = [
        BlockSpec(mixers=(MixerSpec(name=name, config=config),)),
        BlockSpec(mixers=(MixerSpec(name=name, config=config, **second),)),
        BlockSpec(mixers=(MixerSpec(name=name, config=config),)),
    ]
    return StackSpec(d_model=WIDTH, vocab_size=31, blocks=tuple(blocks))


@pytest.mark.parametrize("case", CASES, ids=kit.case_id)
def test_consumer_in_parallel_equals_consumer_by_steps(case: Case) -> None:
    source, consumer = kit.make(case), kit.make(case, seed=1, consumer=True)
    x_BTD, own_BTD = kit.inputs(70), kit.inputs(70, seed=8)
    positions_BT = torch.arange(70).expand(kit.BATCH, 70)
    whole = Span(positions_BT)
    with torch.no_grad():
        full_BTD = consumer.run(own_BTD, None, whole, source.share(x_BTD, None, whole))
    state = source.init_state(kit.BATCH, 70, torch.float64)
    outputs = []
    for t in range(20):
        features = source.share_step(x_BTD[:, t], state, positions_BT[:, t])
        before = state.snapshot()
        outputs.append(consumer.step_read(own_BTD[:, t], features, positions_BT[:, t]))
        assert kit.state_error(before, state) == 0
    assert kit.error(torch.stack(outputs, 1), full_BTD[:, :20]) < 1e-9
    rest = Span(positions_BT[:, 20:])
    features = source.share(x_BTD[:, 20:], state, rest)
    rest_BTD = consumer.run(own_BTD[:, 20:], None, rest, features)
    assert kit.error(rest_BTD, full_BTD[:, 20:]) < 1e-9


@pytest.mark.parametrize("consumer", [False, True], ids=["source", "consumer"])
@pytest.mark.parametrize("case", CASES, ids=kit.case_id)
def test_every_parameter_acts_and_a_consumer_asks_for_itself(case: Case, consumer: bool) -> None:
    source, mixer = kit.make(case), kit.make(case, seed=1, consumer=consumer)
    x_BTD, own_BTD = kit.inputs(7), kit.inputs(7, seed=8).requires_grad_()
    span = Span(torch.arange(7).expand(kit.BATCH, 7))
    shared = source.share(x_BTD, None, span) if consumer else None
    mixer.run(own_BTD, None, span, shared).square().sum().backward()
    assert own_BTD.grad is not None
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("second", [{"state_from": 0}, {"weights_from": 0}], ids=str)
@pytest.mark.parametrize("case", CASES, ids=kit.case_id)
def test_stack_decodes_as_it_trains_and_counts_once(case: Case, second: dict[str, int]) -> None:
    spec = stack(*case, **second)
    torch.manual_seed(0)
    decoder = Decoder(spec).double().eval()
    assert sum(p.numel() for p in decoder.parameters()) == cost.num_params(spec)
    ids_BT = torch.randint(0, 31, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full_BTV = decoder(ids_BT)
    state = decoder.init_state(2, 40, torch.float64)
    assert state.nbytes == 2 * cost.state_bytes(spec, 40, torch.float64)
    assert kit.error(decoder.prefill(ids_BT[:, :33], state), full_BTV[:, 32]) < 1e-9
    for t in range(33, 40):
        assert kit.error(decoder.step(ids_BT[:, t], state), full_BTV[:, t]) < 1e-9


@pytest.mark.parametrize("name", SHAREABLE)
def test_consumer_has_no_features_of_its_own(name: str) -> None:
    settings = registry.get("mixers", name).Config()
    assert settings.num_params(WIDTH, consumer=True) < settings.num_params(WIDTH)
    spec = stack(name, {}, state_from=0)
    alone = stack(name, {})
    assert cost.state_bytes(alone, 40) * 2 == cost.state_bytes(spec, 40) * 3


@pytest.mark.parametrize("name", sorted(set(registry.names("mixers")) - set(SHAREABLE)))
def test_others_refuse_consumers(name: str) -> None:
    with pytest.raises(ValueError, match="does not share"):
        registry.get("mixers", name).Config().build(WIDTH, consumer=True)
