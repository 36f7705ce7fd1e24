"""What a study says on its way: the likely front, budgets that bite, where trials come from."""

from pathlib import Path

from archloop.search.study import Study
from archloop.store.progress import Event
from search.stand_in import StandIn, no_time, recipe


def test_a_running_study_tells_its_likely_front_and_why_each_stack_is_tried(tmp_path: Path) -> None:
    heard: list[Event] = []
    study = Study(recipe(num_trials=10), tmp_path, evaluator=StandIn(), clock=no_time)
    record = study.run(heard.append)
    last = [event for event in heard if event.phase == "told"][-1]
    front = last.front()
    assert {each.number for each in front} <= {-1, *range(10)}
    assert [each.probability for each in front] == sorted(
        (each.probability for each in front), reverse=True
    )
    assert 0 < front[0].probability <= 1
    assert set(front[0].values) == {"quality", "latency", "memory"}
    broke = sum(len(trial.broken) for trial in record.trials)
    assert sum(count for _, count in last.bites) == broke
    by_trial = {event.trial: event.why for event in heard if event.phase == "profile"}
    for trial in record.trials:
        assert by_trial[trial.number].startswith(trial.origin)
        assert all(str(parent) in by_trial[trial.number] for parent in trial.parents)
