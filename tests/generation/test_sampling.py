"""Sampling: the distribution, the noise and the refusals."""

import pytest
import torch

from archloop.generation.sampling import GREEDY, Sampling, choose, draw, uniform


def test_draws_follow_the_distribution() -> None:
    """100,000 draws by seed and by position; frequencies within 5 standard errors."""
    probs_V = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    num = 50_000
    for seeds, positions in ((torch.arange(num), torch.zeros(num)), (torch.zeros(num), None)):
        where = torch.arange(num) if positions is None else positions
        numbers = uniform(seeds.long(), where.long())
        drawn = draw(probs_V.log().expand(num, -1), numbers)
        found_V = torch.bincount(drawn, minlength=5) / num
        error_V = (probs_V * (1 - probs_V) / num).sqrt()
        assert torch.all((found_V - probs_V).abs() <= 5 * error_V)


def test_noise_is_splitmix() -> None:
    """The first output of splitmix64 seeded with 0 is 0xE220A8397B1DCDAF."""
    mixed = uniform(torch.tensor([-1]), torch.tensor([0]))
    # Seed -1 enters as mix(0) = 0, so that position 1 gives splitmix64's first output.
    assert float(mixed) == 0.0
    first = uniform(torch.tensor([-1]), torch.tensor([1]))
    assert float(first) == (0xE220A8397B1DCDAF >> 11) * 2.0**-53


def test_uniform_numbers_lie_below_one() -> None:
    numbers = uniform(torch.arange(10_000), torch.arange(10_000) * 7 - 5)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1


def test_last_tokens_without_probability_are_never_drawn() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert int(draw(logits, torch.tensor([1.0]))) == 1


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
