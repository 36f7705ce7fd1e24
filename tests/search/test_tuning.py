"""Tuned learning rates: which is kept, what a mixed stack trains at, and how little that proves."""

import math

import pytest

from archloop.report import html
from archloop.search import tuning
from archloop.search.study import Study
from search.stand_in import StandIn, no_time, recipe, unit

RATES = [0.0025, 0.005, 0.01, 0.02, 0.04]
BEST = {"short_conv": 0.01, "gqa": 0.0025}


class Bowl(StandIn):
    """Bits per byte are a parabola in the logarithm of the rate, with its own best rate by mixer.

    Args:
        noise: largest deviation of a training.
    """

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.rates: dict[tuple[str, ...], set[float | None]] = {}

    def train(self, job, directory):
        rung = super().train(job, directory)
        if not directory.name.startswith("rate-"):
            self.rates.setdefault(tuple(job.spec.layout), set()).add(job.learning_rate)
            return rung
        off = math.log2(job.learning_rate / BEST[job.spec.layout[0]])
        shaken = self.noise * (2 * unit(job.spec.digest, job.seed, job.learning_rate) - 1)
        text = rung.scores["text"].model_copy(
            update={"value": 2.5 + 0.02 * off**2 + shaken, "chance": 8.0, "perfect": 0.0}
        )
        return rung.model_copy(update={"scores": {"bits_per_byte": text}})


def tuned(folder, evaluator, seed=3, **settings):
    asked = {"learning_rates": RATES, "num_steps": 5} | settings
    changed = recipe(tuning=asked, num_trials=1, budgets=[], seed=seed)
    return Study(changed, folder, evaluator=evaluator, clock=no_time).run()


def test_the_rate_with_the_lowest_loss_is_kept_and_an_edge_is_flagged(tmp_path):
    evaluator = Bowl()
    record = tuned(tmp_path, evaluator)
    assert {name: rate.value for name, rate in record.learning_rates.items()} == BEST
    assert {name: rate.at_edge for name, rate in record.learning_rates.items()} == {
        "short_conv": False,
        "gqa": True,
    }
    for layout, rates in evaluator.rates.items():
        logs = [math.log(BEST[name]) for name in layout]
        assert list(rates) == [pytest.approx(math.exp(sum(logs) / len(logs)))]


def test_two_rates_and_a_known_curvature_place_the_best(tmp_path):
    record = tuned(tmp_path, Bowl(), learning_rates=[0.004, 0.016], curvature=0.02)
    for name, rate in record.learning_rates.items():
        assert rate.value == pytest.approx(BEST[name])
        assert list(rate.losses) == ["0.004", "0.016"]
        assert rate.curvature == 0.02
        assert not rate.at_edge
    assert "a parabola that rises 0.02" in html.render(record)


def test_the_lowest_point_stays_near_what_was_tried():
    losses = {"0.01": 2.0, "0.02": 1.0}
    far = tuning.lowest(losses, 0.02)
    assert far.value == pytest.approx(0.04)
    assert far.at_edge
    one = tuning.lowest({"0.01": 2.0, "0.02": math.inf}, 0.02)
    assert (one.value, one.at_edge, one.curvature) == (0.01, True, None)
    # Three points that no parabola of this curvature meets: the best fit is in their middle.
    even = tuning.lowest({"0.01": 1.0, "0.02": 0.8, "0.04": 1.0}, 0.02)
    assert even.value == pytest.approx(0.02)


def test_one_training_a_rate_may_miss_by_a_factor_of_two(tmp_path):
    """The spread of trainings as short as the quickstart's: 0.08 bits a byte between seeds."""
    found = {
        tuned(tmp_path / str(seed), Bowl(noise=0.08), seed).learning_rates["short_conv"].value
        for seed in range(3)
    }
    assert max(found) / min(found) >= 2


def test_the_report_claims_no_more_than_that(tmp_path):
    page = html.render(tuned(tmp_path, Bowl()))
    assert "the best of one training each" in page
    assert "no difference between families" in page
    assert "at the edge of the grid" in page
