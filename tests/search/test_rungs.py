"""Places at higher rungs: given anew with every told trial, and taken up whenever they open."""

import pytest

from archloop.ranking.objectives import OBJECTIVES
from archloop.ranking.record import Objectives, Readings
from archloop.search.plan import resolve
from archloop.search.rungs import Climb, due
from archloop.search.study import Study
from archloop.search.telling import Finished
from archloop.store.database import Stored
from archloop.store.folder import StudyFolder
from archloop.store.record import Candidate, Costs, Outcome
from search.stand_in import StandIn, no_time, recipe

QUIET = [{"quality": Readings(mean=0.0, sd=0.001, n=30)}]
WORST = Objectives(
    values={name: Readings(mean=at, n=0) for name, at in (("quality", 0), ("latency", 2))}
    | {"memory": Readings(mean=2, n=0)}
)


@pytest.fixture(scope="module")
def spec():
    return resolve(recipe()).reference


def objectives(quality: float) -> Objectives:
    exact = Readings(mean=1.0, n=0)
    return Objectives(values={"quality": Readings(mean=quality), "latency": exact, "memory": exact})


def told(spec, number, *qualities, replicates=None, **outcome):
    costs = Costs(num_params=1, num_active_params=1, state_bytes={}, decode_flops={})
    candidate = Candidate(
        spec=spec, proxy_spec=spec, genome=None, origin="test", replicates=replicates
    )
    reached = tuple(objectives(quality) for quality in qualities)
    result = Outcome(state="complete", by_rung=reached, **outcome)
    return Finished(Stored(number=number, candidate=candidate, costs=costs), None, result)


def next_climb(trials, busy=(), share=1 / 3, num_rungs=3):
    return due(trials, busy, QUIET, WORST, num_rungs, share, OBJECTIVES, seed=1)


def test_nobody_climbs_before_three_have_finished_a_rung(spec):
    trials = [told(spec, number, 0.5 + 0.1 * number) for number in range(3)]
    assert next_climb(trials[:2]) is None
    assert next_climb(trials) == Climb(2, 1)


def test_a_place_that_opens_later_goes_to_one_that_waited(spec):
    """Decided once, trial 1 would have missed its place: trial 0 was better when it was told."""
    three = [told(spec, 0, 0.9, 0.95), told(spec, 1, 0.8), told(spec, 2, 0.5)]
    assert next_climb(three, share=1 / 3) is None
    cheaper = objectives(0.8).values | {"latency": Readings(mean=0.7, n=0)}
    waited = told(spec, 1, 0.8)
    waited = waited._replace(
        result=waited.result.model_copy(update={"by_rung": (Objectives(values=cheaper),)})
    )
    six = [three[0], waited, three[2], *(told(spec, n, 0.4) for n in (3, 4, 5))]
    assert next_climb(six, share=1 / 3) == Climb(1, 1)
    assert next_climb(six, busy=[1], share=1 / 3) is None


def test_the_highest_rung_is_filled_first_and_the_last_has_no_next(spec):
    trials = [told(spec, n, 0.5 + 0.1 * n, 0.6 + 0.1 * n) for n in range(3)]
    assert next_climb(trials) == Climb(2, 2)
    assert next_climb(trials, num_rungs=2) is None


def test_who_crashed_diverged_or_repeats_another_does_not_climb(spec):
    others = [told(spec, 0, 0.5), told(spec, 1, 0.6), told(spec, 2, 0.55)]
    assert next_climb([*others, told(spec, 3, 0.9)]) == Climb(3, 1)
    for last in (
        told(spec, 3, 0.9, error="rung 1: killed"),
        told(spec, 3, 0.9, replicates=1),
    ):
        assert next_climb([*others, last]) in (None, Climb(1, 1))
    diverged = [*others, told(spec, 3, 0.9, diverged=True)]
    assert next_climb(diverged) == Climb(1, 1)


def test_a_study_takes_up_trials_that_were_told_before(tmp_path):
    evaluator = StandIn()
    study = Study(
        recipe(num_trials=14, budgets=[], promote_share=0.5),
        tmp_path,
        evaluator=evaluator,
        clock=no_time,
    )
    record = study.run()
    rungs = [call for call in evaluator.calls if call.startswith("rung-")]
    order = [(int(call.split(" in ")[1]), call.split()[0]) for call in rungs if " in 0000" in call]
    climbed = [number for number, stage in order if stage == "rung-1"]
    first = {number: i for i, (number, stage) in enumerate(order) if stage == "rung-0"}
    later = [i for i, (number, stage) in enumerate(order) if stage == "rung-1"]
    assert climbed
    # Some trial climbs only after others were trained in between.
    assert any(i > first[order[i][0]] + 1 for i in later)
    for trial in record.trials:
        assert len(trial.by_rung) == len(trial.rungs)
    # No checkpoint outlives the study.
    home = StudyFolder(study.folder)
    assert not any(home.trial(trial.number).has_checkpoint() for trial in record.trials)
    # At most the share of the trials that finished a rung went on, and nothing was done twice.
    reached = [sum(len(t.by_rung) > rung for t in record.trials) for rung in range(3)]
    assert 0 < reached[1] <= reached[0] / 2
    assert reached[2] <= max(1, reached[1] / 2)
    assert not any("AGAIN" in call for call in evaluator.calls)


def test_replicates_are_trained_as_far_as_what_they_repeat(tmp_path):
    record = Study(
        recipe(replicates=2, num_trials=8, promote_share=0.4),
        tmp_path,
        evaluator=StandIn(),
        clock=no_time,
    ).run()
    repeated = [trial for trial in record.trials if trial.replicates is not None]
    assert repeated
    for trial in repeated:
        assert len(trial.by_rung) == len(record.trials[trial.replicates].by_rung)
