"""What state space mixers must keep to beyond the contracts that hold for every family."""

import copy

import pytest
import torch

from archloop import registry
from archloop.blocks import S4D, S5, Mamba, Mamba3
from archloop.errors import UserError
from archloop.testing.work import WorkCounter


@pytest.mark.parametrize("rank", [1, 2])
def test_mamba3_reads_of_itself_what_a_longer_next_step_does_not_round_away(rank: int) -> None:
    """Short and long steps in turn: a token adds far more to the state than it reads of it."""
    torch.manual_seed(0)
    mixer = Mamba3.Config(rank=rank, state_dim=8, head_dim=8).build(16).bfloat16()
    with torch.no_grad():
        mixer.skip.zero_()
    x_BTD = 0.1 * torch.randn(2, 40, 16)
    x_BTD[:, 1::2] *= 100
    x_BTD = x_BTD.bfloat16()
    with torch.no_grad():
        want_BTD, _ = copy.deepcopy(mixer).double()(x_BTD.double())
        got_BTD, _ = mixer(x_BTD)
    error_BT = (got_BTD.double() - want_BTD).norm(dim=-1) / want_BTD.norm(dim=-1)
    assert error_BT.max() < 0.12


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("s5", "modes", 1e308),
        ("cfc", "backbone", 1e308),
        ("linear_cfc", "backbone", 1e308),
        ("mamba", "expansion", 1e308),
        ("mamba3", "decay_floor", 1e308),
    ],
)
def test_ratios_beyond_any_width_are_refused(name: str, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?s){field}.*less than or equal to"):
        registry.get("mixers", name).Config(**{field: value}).check(640)


@pytest.mark.parametrize("expansion, width", [(1.1, 1600), (2.2, 3200), (7 / 3, 1728)])
def test_an_expansion_that_is_not_exact_in_binary_gives_a_whole_width(
    expansion: float, width: int
) -> None:
    assert Mamba.Config(expansion=expansion).sizes(width)["d_inner"] == round(expansion * width)


@pytest.mark.parametrize("state_dim", [44, 196])
def test_the_least_rotation_that_is_allowed_can_be_built(state_dim: int) -> None:
    with pytest.raises(UserError) as refusal:
        Mamba3.Config(state_dim=state_dim, rope_fraction=0.001).sizes(64)
    least = float(str(refusal.value).rsplit(maxsplit=1)[-1])
    assert Mamba3.Config(state_dim=state_dim, rope_fraction=least).sizes(64)["num_angles"] == 1


def test_a_step_of_a_mamba_consumer_reads_the_state_alone() -> None:
    config = Mamba.Config(expansion=1.0, state_dim=32)
    producer, consumer = config.build(16), config.build(16, consumer=True)
    x_BD, positions_B = torch.randn(1, 16), torch.tensor([0])
    shared = producer.share_step(x_BD, producer.init_state(1, 4), positions_B)
    with WorkCounter() as work:
        consumer.step(x_BD, None, positions_B=positions_B, shared=shared)
    declared = config.decode_flops(16, 1, consumer=True)
    assert work.matmul_flops <= declared <= 1.02 * (work.matmul_flops + work.elementwise)


@pytest.mark.parametrize("modes", [37, 64, 211])
def test_s5_starts_from_many_frequencies_whatever_the_number_of_modes(modes: int) -> None:
    mixer = S5.Config(modes=1.0).build(modes)
    assert mixer.frequency.unique().numel() >= 16
    assert torch.allclose(mixer.log_decay, torch.tensor(0.5).log())
    per_mode = mixer.b.weight.detach().square().sum(1).unflatten(0, (2, -1)).sum(0)
    assert float((per_mode / per_mode.mean() - 1).abs().max()) < 2


def test_a_mode_that_has_stopped_decaying_is_a_number() -> None:
    mixer = S4D.Config().build(16)
    with torch.no_grad():
        mixer.log_decay.fill_(-60.0)
    x_BTD = torch.randn(2, 70, 16, requires_grad=True)
    y_BTD, _ = mixer(x_BTD)
    for gradient in torch.autograd.grad(y_BTD.sum(), [x_BTD, *mixer.parameters()]):
        assert gradient.isfinite().all()
    assert y_BTD.isfinite().all()


@pytest.mark.parametrize("name", ["s4", "s4d", "s5", "liquid_s4", "rtf", "mamba"])
def test_all_parameters_take_the_default_dtype(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        mixer = registry.get("mixers", name).Config().build(16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in mixer.parameters()} == {torch.float64}


@pytest.mark.parametrize("name, config", [("cfc", {}), ("mamba2", {}), ("mamba3", {"rank": 2})])
def test_a_state_may_be_coarser_than_its_model(name: str, config: dict[str, int]) -> None:
    torch.manual_seed(0)
    mixer = registry.get("mixers", name).Config(**config).build(64).double()
    x_BTD = torch.randn(2, 70, 64, dtype=torch.float64)
    state = mixer.init_state(2, 70, torch.float32)
    with torch.no_grad():
        want_BTD, _ = mixer(x_BTD)
    for start, stop in ((0, 40), (40, 69)):
        got_BTD, _ = mixer(x_BTD[:, start:stop], state)
        assert float((got_BTD - want_BTD[:, start:stop]).abs().max()) < 1e-5
    got_BD, _ = mixer.step(x_BTD[:, 69], state, positions_B=torch.tensor([69, 69]))
    assert got_BD.dtype == torch.float64
    assert float((got_BD - want_BTD[:, 69]).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["s4", "s4d", "rtf", "mamba"])
def test_a_cast_down_from_float64_keeps_float32_at_most(name: str) -> None:
    mixer = registry.get("mixers", name).Config().build(16).double().bfloat16()
    assert {p.dtype for p in mixer.parameters()} == {torch.float32, torch.bfloat16}
    x_BTD = torch.randn(1, 70, 16, dtype=torch.bfloat16)
    assert mixer(x_BTD)[0].isfinite().all()
