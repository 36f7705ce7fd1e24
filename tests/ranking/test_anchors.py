import numpy as np
import pytest

from archloop.evals.base import Score
from archloop.ranking import anchors

PAIR = ("conv", "attention")


def score(value, category="recall", *, error=0.01, chance=0.0, perfect=1.0):
    return Score(
        value=value,
        standard_error=error,
        chance=chance,
        perfect=perfect,
        num_examples=100,
        category=category,
    )


def bits(value, error=0.02):
    return score(value, "text", error=error, chance=8.0, perfect=0.0)


def stacks(**values):
    """Trainings of stacks, each from lists of recall and of bits per byte."""
    return {
        name: [{"recall": score(r), "bpb": bits(b)} for r, b in zip(recall, text, strict=True)]
        for name, (recall, text) in values.items()
    }


BOTH = stacks(conv=([0.2, 0.22], [1.9, 1.88]), attention=([0.9, 0.88], [1.6, 1.62]))


def test_anchors_lie_at_zero_and_one_whichever_way_is_better():
    scale, dropped = anchors.measure(BOTH, {}, PAIR)
    assert not dropped
    for name, lacking, having in (("recall", 0.21, 0.89), ("bpb", 1.89, 1.61)):
        anchor = scale.anchors[name]
        assert anchor.normalised(lacking) == pytest.approx(0)
        assert anchor.normalised(having) == pytest.approx(1)
    assert scale.categories({"recall": score(0.55), "bpb": bits(1.61)}) == pytest.approx(
        {"recall": 0.5, "text": 1.0}
    )


@pytest.mark.parametrize(
    "trained, reason",
    [
        # Nothing between them; seeds that differ as much as stacks; the wrong way round.
        (stacks(conv=([0.5, 0.5], [2, 2]), attention=([0.51, 0.5], [1, 1])), "1.0 standard"),
        (stacks(conv=([0.1, 0.9], [2, 2]), attention=([0.9, 0.9], [1, 1])), "standard errors"),
        (stacks(conv=([0.9, 0.8], [2, 2]), attention=([0.1, 0.1], [1, 1])), "-"),
        # Trained once: the error over examples stands in for that over trainings.
        (stacks(conv=([0.5], [2]), attention=([0.52], [1])), "1.4 standard"),
    ],
)
def test_a_score_that_does_not_tell_them_apart_is_left_out_with_the_reason(trained, reason):
    scale, dropped = anchors.measure(trained, {}, PAIR)
    assert list(scale.anchors) == ["bpb"]
    assert list(dropped) == ["recall"]
    assert reason in dropped["recall"]
    assert "3 are needed" in dropped["recall"]


def test_examples_that_all_stacks_answer_do_not_blur_how_they_differ():
    """64 windows know bits per byte to 0.09, and the difference of two stacks far better."""
    trained = {
        name: [{"bpb": bits(value, error=0.09)} for value in values]
        for name, values in {"conv": [1.90, 1.91], "attention": [1.80, 1.81]}.items()
    }
    scale, dropped = anchors.measure(trained, {}, PAIR)
    assert not dropped
    assert scale.anchors["bpb"].standard_error == pytest.approx(0.00707, abs=1e-5)


def test_equal_scores_are_no_better():
    scale, dropped = anchors.measure({name: [{"r": score(0.5)}] * 2 for name in PAIR}, {}, PAIR)
    assert scale is None
    assert dropped["r"].endswith("which is no better")


def test_no_score_at_all_gives_no_scale():
    equal = stacks(conv=([0.5], [1.0]), attention=([0.5], [1.0]))
    scale, dropped = anchors.measure(equal, {}, PAIR)
    assert scale is None
    assert set(dropped) == {"recall", "bpb"}


def test_a_category_may_have_anchors_of_its_own():
    def trained(recall, state):
        return [{"recall": score(recall), "parity": score(state, "state")}] * 2

    found = {"conv": trained(0.1, 0.5), "attention": trained(0.9, 0.5), "delta": trained(0.6, 1.0)}
    scale, dropped = anchors.measure(found, {"state": ("attention", "delta")}, PAIR)
    assert not dropped
    assert scale.anchors["parity"].has == "delta"
    assert scale.anchors["recall"].has == "attention"
    with pytest.raises(ValueError, match="none of the trained stacks"):
        anchors.measure(found, {"state": ("attention", "s5")}, PAIR)


def test_categories_weigh_alike_whatever_their_unit():
    """A score that sets one anchor stack far from the others must not drown the rest."""
    rng = np.random.default_rng(0)
    # A third stack lies between the anchors in recall, and far outside them in text.
    trained = stacks(
        conv=([0.2, 0.2], [1.9, 1.9]),
        attention=([0.9, 0.9], [1.8, 1.8]),
        mixed=([0.5, 0.5], [1.2, 1.2]),
    )
    scale, _ = anchors.measure(trained, {}, PAIR)
    draws = [
        scale.categories({"recall": score(r), "bpb": bits(b)})
        for r, b in zip(rng.uniform(0.2, 0.9, 400), rng.uniform(1.2, 1.9, 400), strict=True)
    ]
    spread = {
        name: np.std([draw[name] / scale.spreads[name] for draw in draws])
        for name in ("recall", "text")
    }
    assert spread["recall"] == pytest.approx(spread["text"], rel=0.25)


def test_quality_of_the_anchors_and_of_a_missing_score():
    scale, _ = anchors.measure(BOTH, {}, PAIR)
    low, high = (np.mean([scale.quality(s) for s in BOTH[name]]) for name in PAIR)
    assert low == pytest.approx(0, abs=1e-9)
    # Two stacks at 0 and 1 have a standard deviation of the square root of a half.
    assert high == pytest.approx(np.sqrt(2))
    with pytest.raises(ValueError, match="no score for bpb"):
        scale.quality({"recall": score(0.5)})
