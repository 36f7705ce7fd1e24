"""Anchor stacks: which they are, how they become the scale of quality, and what if they fail."""

import pytest

from archloop.errors import UserError
from archloop.search import plan
from archloop.search.anchors import shortest_sighted
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed
from archloop.search.study import Study
from archloop.store.folder import StudyFolder
from search.stand_in import StandIn, no_time, recipe, settings

CONV, REFERENCE, GQA = "all short_conv", "reference", "all gqa"


def study(tmp_path, evaluator=None, **changes):
    changes = {"num_trials": 3, "budgets": [], **changes}
    return Study(recipe(**changes), tmp_path, evaluator=evaluator or StandIn(), clock=no_time)


def test_by_default_the_shortest_sighted_mixer_lacks_what_the_reference_has():
    found = plan.resolve(recipe()).anchors
    assert found.default == (CONV, REFERENCE)
    # Attention alone is no end of the scale, and shows the noise of a third kind of stack.
    assert list(found.stacks) == [CONV, GQA]
    assert found.stacks[GQA].layout == ["gqa"] * 4
    assert found.needed == {CONV, REFERENCE}
    assert shortest_sighted(plan.resolve(recipe()).space) == "short_conv"


def test_a_recipe_names_stacks_by_mixer_layout_and_spec():
    spec = plan.resolve(recipe()).reference
    layout = ["gqa", "gqa", "short_conv", "gqa"]
    found = plan.resolve(
        recipe(
            anchors={
                "default": {"lacks": "short_conv", "has": layout},
                "state": {"lacks": "gqa", "has": spec.model_dump(mode="json")},
            }
        )
    ).anchors
    assert found.default == (CONV, "gqa gqa short_conv gqa")
    assert found.pairs == {"state": (GQA, f"spec {spec.digest[:8]}")}
    assert found.stacks["gqa gqa short_conv gqa"].layout == layout
    assert {spec.d_model for spec in found.stacks.values()} == {64}


@pytest.mark.parametrize(
    "anchors, message",
    [
        (
            {"default": {"lacks": "mamba2", "has": "reference"}},
            r"anchors\.default\.lacks='mamba2'.*give reference, a mixer of the space",
        ),
        (
            {"state": {"lacks": "gqa", "has": "gqa"}},
            r"anchors\.state: all gqa and all gqa are one stack",
        ),
        (
            {"default": {"lacks": "reference", "has": settings()["reference"]["layout"]}},
            "are one stack, so no score can differ",
        ),
    ],
)
def test_what_cannot_anchor_is_refused_before_anything_runs(anchors, message):
    with pytest.raises(UserError, match=message):
        plan.resolve(recipe(anchors=anchors))


def test_a_pair_for_what_is_no_score_is_refused(tmp_path):
    pair = {"lacks": "short_conv", "has": "reference"}
    with pytest.raises(UserError, match=r"anchors\.recal: neither a score .* mean 'recall'\?"):
        study(tmp_path / "wrong", anchors={"recal": pair}).run()
    assert study(tmp_path / "right", anchors={"recall": pair}).run().scale is not None


def test_quality_is_read_between_the_anchor_stacks(tmp_path):
    evaluator = StandIn()
    record = study(tmp_path, evaluator).run()
    assert record.scale is not None
    assert set(record.scale.anchors) == {"recall", "text"}
    assert record.dropped["noise"].endswith("which is no better")
    scores = record.anchors[CONV]
    assert record.scale.quality(scores) == pytest.approx(0)
    for category, spread in record.scale.spreads.items():
        at_reference = record.scale.categories(record.reference.rungs[0].scores)[category]
        assert at_reference == pytest.approx(1)
        assert spread > 0
    quality = record.reference.by_rung[0].mean("quality")
    assert quality == pytest.approx(sum(1 / s for s in record.scale.spreads.values()) / 2)
    trained = [call for call in evaluator.calls if " in " in call and "rung-0" in call]
    assert sum(call.endswith((" in 0", " in 1")) for call in trained) == 6


def test_anchor_stacks_are_trained_once_whatever_is_resumed(tmp_path):
    first = study(tmp_path, StandIn())
    record = first.run()
    again = StandIn()
    assert study(tmp_path, again).run() == record
    assert not any("rung-0" in call for call in again.calls)
    assert (StudyFolder(first.folder).anchor(1).folder / "rung-0-seed-2.json").exists()


class Failing(StandIn):
    """The anchor stack of some mixer crashes."""

    def __init__(self, mixer: str) -> None:
        super().__init__()
        self.mixer = mixer

    def train(self, job, directory):
        if directory.parent.parent.name == "anchors" and job.spec.layout[0] == self.mixer:
            raise CandidateFailed("out of memory")
        return super().train(job, directory)


def test_a_stack_that_only_shows_noise_may_fail(tmp_path):
    record = study(tmp_path, Failing("gqa")).run()
    assert list(record.anchors) == [CONV]
    _, *seeds = record.noise
    assert [each["quality"].n for each in seeds] == [3, 3]


def test_without_an_end_of_the_scale_there_is_no_study(tmp_path):
    with pytest.raises(StudyError, match="the anchor stack all short_conv cannot be trained"):
        study(tmp_path, Failing("short_conv")).run()


class Dull(StandIn):
    """Every training of every stack scores the same."""

    def train(self, job, directory):
        rung = super().train(job, directory)
        same = {n: s.model_copy(update={"value": 0.5}) for n, s in rung.scores.items()}
        return rung.model_copy(update={"scores": same})
