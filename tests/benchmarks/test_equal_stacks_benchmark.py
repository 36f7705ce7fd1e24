"""The A/A benchmark: all candidates are the reference, each measured anew under its own name."""

import equal_stacks
from archloop.search.study import Study
from search.stand_in import StandIn, no_time, recipe


def test_every_candidate_is_the_reference_and_none_takes_over_its_measurement(tmp_path):
    given = equal_stacks.of_equals(recipe(budgets=[]), trials=3, seed=7)
    assert given.name == "test-equal-7"
    evaluator = StandIn()
    record = Study(given, tmp_path, evaluator=evaluator, clock=no_time).run()
    assert {trial.spec for trial in record.trials} == {record.reference.spec}
    assert {trial.proxy_spec for trial in record.trials} == {record.reference.proxy_spec}
    measured = [call for call in evaluator.calls if call.startswith("profile ")]
    assert len(measured) == 1 + 3
    found = equal_stacks.claims(record)
    assert found["compared"] == 3
    # The stand-in's device has no noise but in its intervals, and its trainings differ by seed.
    assert found["on the front"] == found["dominated"] == found["beyond doubt"] == []
