"""Replicates: what a study would claim is measured and trained anew, and reported from that."""

from contextlib import closing

import pytest

from archloop.findings.verdict import verdict
from archloop.report import summary
from archloop.search.study import Study
from archloop.store.connection import open_for_reading
from archloop.store.record import StudyRecord
from search.stand_in import StandIn, no_time, recipe


class Lucky(StandIn):
    """A stand-in whose first training of one stack scores far better than the stack is."""

    lucky: str | None = None

    def train(self, job, directory):
        rung = super().train(job, directory)
        is_first = directory.parent.name == "000000" and directory.name == "rung-0"
        if not is_first:
            return rung
        scores = {
            name: score.model_copy(update={"value": score.value + 0.2})
            for name, score in rung.scores.items()
        }
        return rung.model_copy(update={"scores": scores})


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    found = {}
    for name, evaluator in (("quiet", StandIn()), ("lucky", Lucky())):
        runs = tmp_path_factory.mktemp(name)
        found[name] = Study(
            recipe(replicates=2, num_trials=8, promote_share=0.2),
            runs,
            evaluator=evaluator,
            clock=no_time,
        ).run()
    return found


def replicates(record: StudyRecord) -> dict[int, int]:
    """How often each replicated trial was."""
    numbers = [trial.replicates for trial in record.trials if trial.replicates is not None]
    return {number: numbers.count(number) for number in sorted(set(numbers))}


def test_what_would_be_claimed_is_replicated_twice(studies) -> None:
    record = studies["quiet"]
    counts = replicates(record)
    assert counts
    assert set(counts.values()) == {2}
    for trial in record.trials:
        if trial.replicates is not None:
            original = record.trials[trial.replicates]
            assert trial.spec == original.spec
            assert trial.origin == "replicate"
            assert trial.number >= 8
    found = verdict(record)
    assert found is not None
    assert {row.trial.number for row in found.front} <= set(counts)
    # A replicate is no stack of its own.
    assert all(row.trial.replicates is None for row in found.rows)


def test_a_places_estimates_are_of_its_replicates_alone(studies) -> None:
    record = studies["quiet"]
    found = verdict(record)
    for row in found.rows:
        if row.replicates:
            means = [trial.objectives.mean("quality") for trial in row.replicates]
            quality = row.place.estimates["quality"]
            assert quality.n == 2
            if found.comparison.rung == 0:
                assert quality.mean == pytest.approx(sum(means) / 2)


def test_a_lucky_training_is_not_reported(studies) -> None:
    """0.2 of luck at trial 0 is gone from its place once it is replicated."""
    record = studies["lucky"]
    assert 0 in replicates(record)
    row = verdict(record).row(0)
    assert row.trial.objectives.mean("quality") > row.place.estimates["quality"].mean + 0.1


def test_a_member_whose_upper_bound_breaks_a_budget_is_not_on_the_front(studies) -> None:
    record = studies["quiet"]
    found = verdict(record)
    tight = [{"metric": "decode_p50_ms", "limit": 0.5, "relative": True}]
    settings = {**record.recipe, "budgets": tight}
    strict = verdict(record.model_copy(update={"recipe": settings}))
    claimed = [row for row in found.rows if row.place.member.status == "front" and row.replicates]
    assert claimed
    assert not strict.front
    for row in claimed:
        same = strict.row(row.trial.number)
        assert same.may_break
        assert "may break decode_p50_ms/reference" in strict.place_in_words(same)


def test_unreplicated_members_are_said_to_be_so(studies) -> None:
    record = studies["quiet"]
    only = tuple(trial for trial in record.trials if trial.replicates is None)
    found = verdict(record.model_copy(update={"trials": only}))
    assert not found.front
    words = [found.place_in_words(row) for row in found.rows]
    assert any(text.endswith("not replicated") for text in words)
    assert summary.summarize(record)["places"][1]["replicates"] is not None


def test_a_study_ends_when_its_front_stands_still_or_its_time_is_spent(tmp_path) -> None:
    class Fading(StandIn):
        """Every trial is as fast and small as the reference, and worse than the one before."""

        def profile(self, spec, reference, look, directory):
            return super().profile(reference, reference, look, directory)

        def train(self, job, directory):
            rung, home = super().train(job, directory), directory.parent
            folder = home.name if home.parent.name == "trials" else ""
            fall = 0.05 * int(folder) if folder.isdigit() else 0.0
            scores = {
                name: score.model_copy(update={"value": 0.8 - fall})
                for name, score in rung.scores.items()
            }
            return rung.model_copy(update={"scores": scores}) if folder.isdigit() else rung

    still = Study(
        recipe(until_still=2, num_trials=14, replicates=0), tmp_path / "a", evaluator=Fading()
    ).run()
    assert 3 <= len(still.trials) < 14
    assert still.ended == "none of the last 2 trials is on the front"

    class Slow(StandIn):
        now = 0.0

        def train(self, job, directory):
            Slow.now += 600
            return super().train(job, directory)

    timed = Study(
        recipe(max_hours=3, num_trials=14, replicates=0),
        tmp_path / "b",
        evaluator=Slow(),
        clock=lambda: Slow.now,
    ).run()
    assert timed.ended == "its time of 3 h is spent"
    assert 1 <= len(timed.trials) < 14
    with closing(open_for_reading(tmp_path / "b" / "test", None, "test")) as database:
        assert database.attribute("spent_s") == Slow.now
