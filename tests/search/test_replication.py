"""Replicates: what a study would claim is measured and trained anew, and reported from that."""

from contextlib import closing

import pytest

from archloop.findings.verdict import verdict
from archloop.ranking.anchors import Scale
from archloop.ranking.record import Objectives, Readings
from archloop.report import summary
from archloop.search import plan, so_far
from archloop.search.ending import reason
from archloop.search.replication import due
from archloop.search.study import Study
from archloop.search.telling import Finished
from archloop.stack.spec import StackSpec
from archloop.store.connection import open_for_reading
from archloop.store.database import Stored
from archloop.store.record import Candidate, Costs, Outcome, StudyRecord
from archloop.store.reference_run import ReferenceRun
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


# --- what is due ----------------------------------------------------------------------------------

EXACT = Readings(mean=1.0, n=0)


def read(quality: float, latency: float = 1.0, n: int = 1) -> Objectives:
    """Quality in one training whose noise is known; latency and memory without noise."""
    known = {"latency": Readings(mean=latency, n=0), "memory": EXACT}
    return Objectives(values={"quality": Readings(mean=quality, n=n), **known})


@pytest.fixture(scope="module")
def spec() -> StackSpec:
    return plan.resolve(recipe()).reference


@pytest.fixture(scope="module")
def reference_run() -> ReferenceRun:
    """Quality .5; trainings differ by .001, as 30 of them showed."""
    return ReferenceRun.model_construct(
        objectives=(read(0.5, n=0),),
        noise=({"quality": Readings(mean=0.0, sd=0.001, n=30)},),
        worst=Objectives(
            values={
                "quality": Readings(mean=0.0, n=0),
                "latency": Readings(mean=2.0, n=0),
                "memory": Readings(mean=2.0, n=0),
            }
        ),
    )


def told(
    spec: StackSpec, number: int, values: Objectives | None, replicates: int | None = None
) -> Finished:
    """A trial that has ended; one without values runs."""
    candidate = Candidate(
        spec=spec, proxy_spec=spec, genome=None, origin="test", replicates=replicates
    )
    costs = Costs(num_params=1, num_active_params=1, state_bytes={}, decode_flops={})
    stored = Stored(number=number, candidate=candidate, costs=costs)
    if values is None:
        return Finished(stored, None, Outcome(state="running"))
    return Finished(stored, None, Outcome(state="complete", by_rung=(values,)))


def test_who_comes_to_the_front_by_anothers_replicates_is_replicated_too(
    spec: StackSpec, reference_run: ReferenceRun
) -> None:
    """Trial 0 was lucky and stood before trial 1, which is the best once that luck is gone."""
    trials = [told(spec, number, read(q)) for number, q in enumerate((0.9, 0.8, 0.3))]
    asked = recipe(replicates=1)
    assert due(trials, reference_run, asked) == 0
    assert due([*trials, told(spec, 3, None, replicates=0)], reference_run, asked) is None
    again = [*trials, told(spec, 3, read(0.5), replicates=0)]
    assert due(again, reference_run, asked) == 1
    assert due([*again, told(spec, 4, None, replicates=1)], reference_run, asked) is None


def test_nothing_is_replicated_for_a_claim_that_replicates_have_shown_to_be_noise(
    spec: StackSpec, reference_run: ReferenceRun
) -> None:
    """Trial 1 is better than the reference by 20 standard errors, until trial 0 is repeated."""
    trials = [told(spec, 0, read(0.9, latency=1.2)), told(spec, 1, read(0.52, latency=1.1))]
    asked = recipe(replicates=1)
    begun = [*trials, told(spec, 2, None, replicates=0)]
    assert due(trials, reference_run, asked) == 0
    assert due(begun, reference_run, asked) == 1
    ended = [*trials, told(spec, 2, read(0.5, latency=1.2), replicates=0)]
    assert due(ended, reference_run, asked) is None


def test_a_trial_gets_all_its_replicates_whatever_the_first_one_is(
    spec: StackSpec, reference_run: ReferenceRun
) -> None:
    trials = [told(spec, number, read(q)) for number, q in enumerate((0.9, 0.8, 0.3))]
    asked = recipe(replicates=2)
    first = [*trials, told(spec, 3, read(0.5), replicates=0)]
    assert due(first, reference_run, asked) == 0
    assert due([*first, told(spec, 4, read(0.6), replicates=0)], reference_run, asked) != 0


def test_a_study_of_devices_replicates_nothing_whatever_its_strategy_repeated(
    spec: StackSpec, reference_run: ReferenceRun
) -> None:
    """Its time was spent just after its strategy had repeated trial 0."""
    asked = recipe(replicates=2)
    trials = [told(spec, 0, read(0.9)), told(spec, 1, read(0.5), replicates=0)]
    assert due(trials, reference_run, asked) == 0
    assert due(trials, reference_run, plan.resolve(asked).of_devices().recipe) is None


def test_the_likely_front_of_a_running_study_is_that_of_replicates_too(
    spec: StackSpec, reference_run: ReferenceRun
) -> None:
    trials = [told(spec, number, read(q)) for number, q in enumerate((0.9, 0.8, 0.3))]
    known = {"candidate": trials[0].stored.candidate, "scale": Scale(anchors={}, spreads={})}
    begun = reference_run.model_copy(update=known)
    before = {each.number: each for each in so_far.standings(trials, begun, recipe())}
    assert before[1].probability < 0.1 < before[0].probability
    again = [*trials, told(spec, 3, read(0.5), replicates=0)]
    after = {each.number: each for each in so_far.standings(again, begun, recipe())}
    assert after[0].values["quality"] == pytest.approx(0.5)
    assert after[0].probability < 0.1 < after[1].probability


def test_a_front_that_stands_still_by_luck_alone_ends_no_study(
    spec: StackSpec, reference_run: ReferenceRun
) -> None:
    asked = recipe(until_still=2)
    said = "none of the last 2 trials is on the front"
    first, again = told(spec, 0, read(0.9)), told(spec, 1, read(0.3), replicates=0)
    others = [told(spec, 2, read(0.6)), told(spec, 3, read(0.7))]
    assert reason(asked, [first, *others], reference_run, 0.0) == said
    assert reason(asked, [first, again, *others], reference_run, 0.0) is None
    # What is replicated once a study has ended does not make it go on.
    later = told(spec, 4, read(0.3), replicates=0)
    assert reason(asked, [first, *others, later], reference_run, 0.0) == said


@pytest.mark.parametrize("name", ["quiet", "lucky"])
def test_whatever_the_verdict_puts_on_the_front_was_replicated(studies, name: str) -> None:
    record = studies[name]
    found = verdict(record)
    counts = replicates(record)
    assert set(counts.values()) <= {2}
    for row in found.rows if found.ranks_quality else ():
        if row.place.member.status == "front":
            assert counts.get(row.trial.number) == 2
