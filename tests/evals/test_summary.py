"""The aggregate and its error: against redrawing all examples and all seeds many times."""

import numpy as np
import pytest

from archloop.evals.base import Grades, Score, mean, ratio
from archloop.evals.summary import influence, over_trainings, summarise


def score(value, error=0.0, category="x", perfect=2.0):
    return Score(
        value=value,
        standard_error=error,
        chance=0.0,
        perfect=perfect,
        num_examples=9,
        category=category,
    )


def graded(grades, category="x"):
    """A score from grades, as an evaluation sums them up."""
    value, error = mean(grades) if grades.weights_N is None else ratio(grades)
    return score(value, error, category)


def test_summary_is_the_mean_over_categories():
    found = summarise(
        {"a": score(1.0, 0.2, "x"), "b": score(2.0, 0.2, "x"), "c": score(0.0, 0.4, "y")}
    )
    assert found.categories["x"] == pytest.approx((0.75, 0.1 / np.sqrt(2)))
    assert found.categories["y"] == pytest.approx((0.0, 0.2))
    assert found.mean == pytest.approx(0.375)
    assert found.standard_error == pytest.approx(np.hypot(0.1 / np.sqrt(2), 0.2) / 2)


def test_nothing_is_no_summary():
    with pytest.raises(ValueError, match="no scores"):
        summarise({})


@pytest.mark.parametrize("weighted", [False, True])
def test_influences_square_to_the_error(weighted):
    rng = np.random.default_rng(0)
    weights_N = rng.uniform(1, 5, 40) if weighted else None
    grades = Grades(rng.normal(1, 0.3, 40) * (1 if weights_N is None else weights_N), weights_N)
    found = graded(grades)
    moved_N = influence(found, grades)
    assert moved_N.sum() == pytest.approx(0, abs=1e-12)
    assert np.sqrt((moved_N**2).sum()) == pytest.approx(found.standard_error / 2)


def test_a_score_whose_grades_are_all_alike_keeps_its_error():
    grades = Grades(np.ones(16))
    found = graded(grades)
    assert np.sqrt((influence(found, grades) ** 2).sum()) == pytest.approx(found.standard_error / 2)


def test_the_same_grades_twice_are_no_surer_than_once():
    rng = np.random.default_rng(0)
    grades = Grades(rng.normal(1, 0.3, 40))
    scores = {"a": graded(grades), "b": graded(grades)}
    moved_N = influence(scores["a"], grades)
    together = summarise(scores, dict.fromkeys(scores, ("texts", moved_N)))
    apart = summarise(scores, {name: (name, moved_N) for name in scores})
    assert together.standard_error == pytest.approx(scores["a"].standard_error / 2)
    assert apart.standard_error == pytest.approx(together.standard_error / np.sqrt(2))


def drawn(rng, num):
    """Three evaluations in two categories, of which two grade the same examples; one a ratio."""
    shared_N = rng.normal(size=num)
    weights_N = rng.uniform(1, 3, num)
    grades = {
        "a": Grades(1 + 0.3 * shared_N + 0.1 * rng.normal(size=num)),
        "b": Grades(weights_N * (1 + 0.3 * shared_N), weights_N),
        "c": Grades(1 + 0.2 * rng.normal(size=num)),
    }
    scores = {name: graded(each, "xxy"["abc".index(name)]) for name, each in grades.items()}
    names = {"a": "texts", "b": "texts", "c": "c"}
    influences = {n: (names[n], influence(scores[n], grades[n])) for n in grades}
    return summarise(scores, influences)


def test_the_error_is_the_spread_over_redrawn_examples():
    rng = np.random.default_rng(0)
    found = [drawn(rng, 50) for _ in range(2000)]
    spread = np.std([each.mean for each in found])
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.06)


def test_more_examples_shrink_the_error_by_the_root_of_their_number():
    rng = np.random.default_rng(0)
    few, many = (np.mean([drawn(rng, n).standard_error for _ in range(40)]) for n in (50, 800))
    assert few / many == pytest.approx(4, rel=0.1)


def trained(rng, num_seeds):
    """A seed moves all scores of a training together, and each a little by itself."""
    trainings = []
    for _ in range(num_seeds):
        seed = 0.2 * rng.normal()
        values = {name: 1 + seed + 0.02 * rng.normal() for name in "abc"}
        trainings.append({n: score(v, 0.01, "xxy"["abc".index(n)]) for n, v in values.items()})
    return over_trainings(trainings)


def test_the_error_over_trainings_is_the_spread_over_other_seeds():
    rng = np.random.default_rng(0)
    found = [trained(rng, 4) for _ in range(2000)]
    spread = np.std([each.mean for each in found])
    squares = np.mean([each.standard_error**2 for each in found])
    assert np.sqrt(squares) == pytest.approx(spread, rel=0.06)
    # Taken as independent, the scores' own errors would tell a tenth of it.
    assert spread > 0.04


def test_more_seeds_shrink_the_error_by_the_root_of_their_number():
    rng = np.random.default_rng(0)
    few, many = (
        np.sqrt(np.mean([trained(rng, n).standard_error ** 2 for _ in range(300)])) for n in (4, 16)
    )
    assert few / many == pytest.approx(2, rel=0.15)


def test_trainings_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="two of them"):
        over_trainings([{"a": score(1.0)}])
    with pytest.raises(ValueError, match="different evaluations"):
        over_trainings([{"a": score(1.0)}, {"b": score(1.0)}])
    with pytest.raises(ValueError, match="4 examples"):
        summarise(
            {"a": score(1.0), "b": score(1.0)},
            {"a": ("texts", np.zeros(3)), "b": ("texts", np.zeros(4))},
        )
