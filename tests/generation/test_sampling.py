"""Sampling: the distribution, the noise and the refusals."""

import math

import pytest
import torch

from archloop.errors import UserError
from archloop.generation.sampling import GREEDY, Sampling, check_finite, choose, draw, gumbel_noise


def test_draws_follow_the_distribution() -> None:
    """100,000 draws by seed and by position; frequencies within 5 standard errors."""
    probs_V = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    num = 50_000
    for seeds, positions in (
        (torch.arange(num), torch.zeros(num).long()),
        (torch.zeros(num).long(), torch.arange(num)),
    ):
        noise_BV = gumbel_noise(seeds, positions, 5)
        drawn = draw(probs_V.log().expand(num, -1), noise_BV)
        found_V = torch.bincount(drawn, minlength=5) / num
        error_V = (probs_V * (1 - probs_V) / num).sqrt()
        assert torch.all((found_V - probs_V).abs() <= 5 * error_V)


def test_noise_is_splitmix() -> None:
    """Seeded with 0, splitmix64 begins with 0xE220A8397B1DCDAF and 0x6E789E6AA1B965F4."""
    # Seed -1 and position 0 enter as mix(mix(0)) = 0, the seed of a stream with a token a number.
    noise_1V = gumbel_noise(torch.tensor([-1]), torch.tensor([0]), 2)
    numbers = [(bits >> 11) + 0.5 for bits in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)]
    wanted = [-math.log(-math.log(number * 2.0**-53)) for number in numbers]
    assert noise_1V[0].tolist() == pytest.approx(wanted, rel=1e-14)


def test_noise_is_finite_and_its_own_for_each_token() -> None:
    noise_BV = gumbel_noise(torch.arange(300), torch.arange(300) * 7 - 5, 300)
    assert torch.isfinite(noise_BV).all()
    assert noise_BV.unique().numel() == noise_BV.numel()


def test_tokens_without_probability_are_never_drawn() -> None:
    logits_BV = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf]).expand(500, -1)
    drawn = draw(logits_BV, gumbel_noise(torch.arange(500), torch.arange(500), 4))
    assert drawn.unique().tolist() == [1, 2]


def test_rounding_moves_few_draws() -> None:
    """Logits that differ by rounding give other tokens as rarely as two of their sums are close.

    Where a number in [0, 1) is looked up in cumulated probabilities, 1 draw in 4 is another.
    """
    torch.manual_seed(0)
    num = 2000
    exact_BV = torch.randn(num, 2048) * 2
    rounded_BV = exact_BV.bfloat16().float()
    noise_BV = gumbel_noise(torch.arange(num), torch.zeros(num).long(), 2048)
    moved = int((draw(exact_BV, noise_BV) != draw(rounded_BV, noise_BV)).sum())
    assert moved <= 0.01 * num


def test_greedy_ignores_seeds() -> None:
    logits_BV = torch.tensor([[0.0, 2.0, 1.0]])
    for seed in range(3):
        chosen = choose(logits_BV, GREEDY, torch.tensor([seed]), torch.tensor([0]))
        assert chosen.tolist() == [1]


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -0.1),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("temperature", float("inf")),
        ("top_k", 2.5),
        ("top_k", True),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"not allowed: {field}"):
        Sampling(**{field: value})


@pytest.mark.parametrize("temperature", [1e-42, -0.5, float("nan")])
def test_a_temperature_that_leaves_nothing_to_draw_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature 0, or from 1e-6 up"):
        Sampling(temperature=temperature)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits_BV = torch.zeros(2, 4)
    logits_BV[0, :3] = -torch.inf
    check_finite(logits_BV, "float16", "here")
    logits_BV[1, 2] = bad
    with pytest.raises(UserError, match=r"logits here are not finite.*float16.*or float32"):
        check_finite(logits_BV, "float16", "here")
    with pytest.raises(UserError, match="float32; the weights may be damaged"):
        check_finite(torch.full((1, 3), -torch.inf), "float32", "here")
