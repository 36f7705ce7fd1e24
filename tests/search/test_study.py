"""The loop with a stand-in for devices and trainings: budgets, rungs, failures, ends."""

import math
from pathlib import Path

import pytest

from archloop.errors import UserError
from archloop.profiling.record import Interval
from archloop.proxy.record import Rung, TrainJob
from archloop.ranking import front
from archloop.ranking.objectives import as_point
from archloop.report import html
from archloop.search.errors import NoFeasibleTrial, StudyError
from archloop.search.evaluator import Unsupported
from archloop.search.plan import Stream, stream_seed, training_seed
from archloop.search.recipe.recipe import RecipeError
from archloop.search.study import Study
from archloop.store.lock import StudyBusyError, exclusive
from archloop.store.progress import Event
from archloop.store.record import StudyRecord
from archloop.store.stages import Profiled
from search.stand_in import StandIn, no_time, recipe, settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyRecord, StandIn, Path]:
    evaluator = StandIn()
    study = Study(recipe(), tmp_path_factory.mktemp("runs"), evaluator=evaluator, clock=no_time)
    return study.run(), evaluator, study.folder


def test_runs_every_trial_and_rejects_some(finished):
    record, _, _ = finished
    assert [trial.number for trial in record.trials] == list(range(14))
    states = {trial.state for trial in record.trials}
    assert states == {"complete", "rejected"}


def test_rejected_trials_are_never_trained(finished):
    record, evaluator, _ = finished
    rejected = [trial for trial in record.trials if trial.state == "rejected"]
    assert rejected
    for trial in rejected:
        assert trial.broken[0].value > trial.broken[0].limit
        assert not trial.rungs
        assert not any(
            call.startswith("rung-0 ") and trial.proxy_spec.digest in call
            for call in evaluator.calls
        )


def test_no_spec_is_measured_twice(finished):
    record, evaluator, _ = finished
    digests = [trial.spec.digest for trial in record.trials]
    assert len(set(digests)) == len(digests)
    assert not any("AGAIN" in call for call in evaluator.calls)


def test_straddling_budget_gets_one_more_look(finished):
    record, evaluator, _ = finished
    twice = {call.split()[1] for call in evaluator.calls if call.startswith("profile-2")}
    assert twice
    for trial in record.trials:
        looked = trial.profiles["here"].num_processes // 2
        assert looked == (2 if trial.spec.digest in twice else 1)
    # The last look decides by the estimate, whatever its interval contains.
    rejected = [trial for trial in record.trials if trial.state == "rejected"]
    assert any(trial.straddles for trial in rejected)
    for trial in rejected:
        assert all(broken.value > broken.limit for broken in trial.broken)


def test_rungs_promote_the_top_share(finished):
    record, _, _ = finished
    complete = [trial for trial in record.trials if trial.state == "complete"]
    heights = [len(trial.rungs) for trial in complete]
    assert set(heights) >= {1, 2}
    at_first = sum(height >= 2 for height in heights)
    assert 1 <= at_first < len(complete)
    for trial in complete:
        assert [rung.num_steps for rung in trial.rungs] == [10, 20, 40][: len(trial.rungs)]
        assert len(trial.by_rung) == len(trial.rungs)


def test_reference_is_fixed_first(finished):
    record, evaluator, _ = finished
    assert evaluator.calls[0].startswith("profile")
    assert record.admitted == ("recall", "text")
    assert list(record.dropped) == ["noise"]
    beside_itself, *seeds = record.noise
    assert {"latency", "memory"} < set(beside_itself)
    # The reference and two anchor stacks, 3 trainings each: 6 degrees of freedom.
    assert [stack["quality"].n for stack in seeds] == [3, 3, 3]
    assert all(stack["quality"].sd > 0 for stack in seeds)
    assert record.reference is not None
    assert record.reference.objectives is not None
    assert record.reference.objectives.mean("latency") == 1.0
    assert record.reference_point is not None
    assert record.reference_point.mean("quality") == 0.0


def test_trials_are_trained_as_often_as_the_recipe_says(tmp_path):
    evaluator = StandIn()
    record = Study(recipe(seeds=3, num_trials=3), tmp_path, evaluator=evaluator).run()
    complete = [trial for trial in record.trials if trial.state == "complete"]
    assert complete
    for trial in complete:
        quality = trial.objectives.values["quality"]
        assert quality.n == 3
        assert quality.sd > 0
        names = [call.split()[0] for call in evaluator.calls if trial.proxy_spec.digest in call]
        assert {"rung-0", "rung-0-seed-1", "rung-0-seed-2"} <= set(names)


def test_hypervolume_adds_up(finished):
    record, _, _ = finished
    points = [as_point(t.objectives) for t in record.trials if t.state == "complete"]
    total = front.hypervolume(points, as_point(record.reference_point))
    gains = sum(trial.hypervolume_gain or 0.0 for trial in record.trials)
    assert gains == pytest.approx(total)


# Optuna warns that it explains low values of a target; which end is explained does not matter here.
def test_finished_study_only_reads(finished, tmp_path):
    record, _, folder = finished
    evaluator = StandIn()
    again = Study(recipe(), folder.parent, evaluator=evaluator, clock=no_time).run()
    assert again == record
    assert evaluator.calls == ["close"]


def test_crash_marks_that_trial_alone(tmp_path):
    whole = Study(recipe(), tmp_path / "a", evaluator=StandIn(), clock=no_time).run()
    victim = whole.trials[2].spec.digest
    record = Study(recipe(), tmp_path / "b", evaluator=StandIn(fails=victim), clock=no_time).run()
    assert record.trials[2].state == "failed"
    assert record.trials[2].error == "worker: exit status 1: the engine crashed"
    assert len(record.trials) == 14
    assert [t.state for t in record.trials].count("failed") == 1


class Diverging(StandIn):
    """Trainings diverge in folders whose path has one of some words."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self.words = words

    def train(self, job: TrainJob, directory: Path) -> Rung:
        rung = super().train(job, directory)
        if not any(word in str(directory) for word in self.words):
            return rung
        lost = {"diverged": True, "scores": {}, "losses": ((0, 5.0), (1, math.nan))}
        return rung.model_copy(update=lost)


def test_diverged_training_is_flagged_and_worth_no_more_than_guessing(tmp_path):
    events: list[Event] = []
    study = Study(recipe(num_trials=4, budgets=[]), tmp_path, evaluator=Diverging("000001"))
    record = study.run(events.append)
    trial = record.trials[1]
    assert trial.state == "complete"
    assert trial.rungs[0].diverged
    assert math.isnan(trial.rungs[0].losses[1][1])
    assert trial.objectives is not None
    assert trial.objectives.mean("quality") == pytest.approx(0.0)
    assert trial.hypervolume_gain == 0.0
    assert len(trial.rungs) == 1
    kept = [as_point(t.objectives) for t in record.trials if t.reached]
    assert events[-1].front_size == front.nondominated(kept).sum()
    told = next(event for event in events if event.phase == "told" and event.trial == 1)
    assert told.detail.startswith("training diverged")
    assert told.front_size == 1


def test_a_trial_of_which_one_training_of_several_diverged_is_kept_and_shown(tmp_path):
    several = recipe(num_trials=3, budgets=[], seeds=2)
    evaluator = Diverging("000001/rung-0-seed-1")
    study = Study(several, tmp_path, evaluator=evaluator, clock=no_time)
    record = study.run()
    trial = record.trials[1]
    assert (trial.state, trial.diverged, trial.reached) == ("complete", True, ())
    assert trial.rungs[0].diverged
    assert [bool(scores) for scores in trial.scores_by_seed[0]] == [True, False]
    assert "diverged" in html.render(record)
    assert study.run().trials[1].by_rung == trial.by_rung


def test_a_study_of_nothing_but_diverged_trainings_has_no_winner(tmp_path):
    evaluator = Diverging("trials")
    with pytest.raises(NoFeasibleTrial, match=r"diverged.*lower proxy.training.learning_rate"):
        Study(recipe(num_trials=3, budgets=[]), tmp_path, evaluator=evaluator).run()


def test_spec_that_a_required_target_cannot_run_is_unsupported(tmp_path):
    class Picky(StandIn):
        def profile(self, spec, reference, look, directory) -> Profiled:
            if spec != reference and "gqa" in spec.layout:
                raise Unsupported("stand-in runs no gqa")
            return super().profile(spec, reference, look, directory)

    every = recipe(budgets=[], initial=[["short_conv"] * 4])
    record = Study(every, tmp_path, evaluator=Picky()).run()
    refused = [trial for trial in record.trials if trial.error]
    assert refused
    for trial in refused:
        assert trial.state == "unsupported"
        assert trial.error == "stand-in runs no gqa"
        assert not trial.rungs


def test_study_in_which_nothing_runs_says_so(tmp_path):
    class Refusing(StandIn):
        def profile(self, spec, reference, look, directory) -> Profiled:
            if spec != reference:
                raise Unsupported("stand-in: no such mixer")
            return super().profile(spec, reference, look, directory)

    with pytest.raises(NoFeasibleTrial, match="no required target can run any trial, the first"):
        Study(recipe(num_trials=3), tmp_path, evaluator=Refusing()).run()


def test_a_trial_is_measured_on_the_optional_targets_that_can_run_it(tmp_path):
    class Two(StandIn):
        def profile(self, spec, reference, look, directory) -> Profiled:
            here = super().profile(spec, reference, look, directory).profiles["here"]
            if spec != reference and "gqa" in spec.layout:
                return Profiled(profiles={"here": here}, left_out={"there": "it runs no gqa"})
            slower = here.model_copy(update={"latency_ratio": around(2 * here.latency_ratio.value)})
            return Profiled(profiles={"here": here, "there": slower})

    def around(value):
        return Interval(value=value, low=value, high=value)

    targets = {"here": {"contexts": [64, 128]}, "there": {"contexts": [64], "optional": True}}
    both = recipe(budgets=[], targets=targets, initial=[["short_conv"] * 4])
    record = Study(both, tmp_path, evaluator=Two()).run()
    assert {tuple(trial.profiles) for trial in record.trials} == {("here",), ("here", "there")}
    for trial in record.trials:
        worst = max(profile.latency_ratio.value for profile in trial.profiles.values())
        assert trial.objectives.mean("latency") == worst
        runs = trial.spec == record.reference.spec or "gqa" not in trial.spec.layout
        assert trial.left_out == ({} if runs else {"there": "it runs no gqa"})


def test_crash_on_a_higher_rung_keeps_the_lower(finished, tmp_path):
    whole, _, _ = finished
    tall = next(trial for trial in whole.trials if len(trial.rungs) > 1)
    evaluator = StandIn(fails=f"rung-1 {tall.proxy_spec.digest}")
    record = Study(recipe(), tmp_path, evaluator=evaluator, clock=no_time).run()
    trial = record.trials[tall.number]
    assert trial.state == "complete"
    assert trial.objectives == tall.objectives
    assert len(trial.rungs) == 1
    assert trial.error is not None
    assert trial.error.startswith("rung 1: worker")


def test_crash_of_the_reference_ends_the_study(tmp_path):
    study = Study(recipe(), tmp_path, evaluator=StandIn(fails="rung-0-seed-1"))
    with pytest.raises(StudyError, match="reference preset failed"):
        study.run()


def test_no_trial_has_a_seed_of_what_is_trained_beside_the_trials(tmp_path):
    seeds: dict[bool, set[int]] = {True: set(), False: set()}

    class Listing(StandIn):
        def train(self, job: TrainJob, directory: Path) -> Rung:
            seeds["trials" in directory.parts].add(job.seed)
            return super().train(job, directory)

    tuning = {"num_steps": 5, "learning_rates": [0.001, 0.003, 0.01]}
    several = recipe(num_trials=4, budgets=[], seeds=3, tuning=tuning)
    Study(several, tmp_path, evaluator=Listing(), clock=no_time).run()
    assert all(seeds.values())
    assert not seeds[True] & seeds[False]
    trials = [training_seed(7, number, index) for number in range(51) for index in range(10)]
    others = [
        stream_seed(7, stream, index, number)
        for stream in Stream
        for index in range(10)
        for number in range(10)
    ]
    assert len({*trials, *others}) == len(trials) + len(others)


def test_a_crash_while_tuning_is_told_as_such(tmp_path):
    tuning = {"num_steps": 5, "learning_rates": [0.001, 0.003, 0.01]}
    study = Study(recipe(tuning=tuning), tmp_path, evaluator=StandIn(fails="rate-1"))
    with pytest.raises(StudyError, match="a training that tunes a learning rate failed"):
        study.run()


def test_nothing_feasible_names_the_nearest(tmp_path):
    tight = [{"metric": "decode_p50_ms", "limit": 0.2, "relative": True}]
    study = Study(recipe(budgets=tight, num_trials=3, initial=[]), tmp_path, evaluator=StandIn())
    with pytest.raises(NoFeasibleTrial, match=r"no feasible trial; nearest was trial \d .*0\.2"):
        study.run()
    assert len(study.read().trials) == 3


def test_changed_recipe_is_refused(finished):
    _, _, folder = finished
    changed = Study(recipe(num_trials=20), folder.parent, evaluator=StandIn())
    with pytest.raises(RecipeError, match=r"num_trials is 20 and was 14.*another name"):
        changed.run()


def test_recipe_may_change_until_something_is_done(tmp_path):
    class NoText(StandIn):
        def prepare(self):
            raise UserError("proxy.corpus: file text.txt does not exist; correct corpus.paths")

    with pytest.raises(RecipeError, match=r"test.yaml|recipe 'test': proxy.corpus: .*text.txt"):
        Study(recipe(num_trials=3), tmp_path, evaluator=NoText()).run()
    assert len(Study(recipe(num_trials=2), tmp_path, evaluator=StandIn()).run().trials) == 2


def test_changed_corpus_is_refused(finished):
    _, _, folder = finished
    evaluator = StandIn()
    evaluator.prepare = lambda: {"corpus": "other"}  # type: ignore[method-assign]
    with pytest.raises(RecipeError, match="not what the study"):
        Study(recipe(), folder.parent, evaluator=evaluator).run()


def test_another_device_is_refused(tmp_path):
    class Elsewhere(StandIn):
        def profile(self, spec, reference, look, directory) -> Profiled:
            found = super().profile(spec, reference, look, directory)
            if spec == reference:
                return found
            here = found.profiles["here"]
            identity = here.identity.model_copy(update={"threads": 8})
            return Profiled(profiles={"here": here.model_copy(update={"identity": identity})})

    with pytest.raises(StudyError, match="threads was 1, is 8"):
        Study(recipe(), tmp_path, evaluator=Elsewhere()).run()


def test_two_runs_on_one_folder(finished):
    _, _, folder = finished
    study = Study(recipe(), folder.parent, evaluator=StandIn())
    with exclusive(folder), pytest.raises(StudyBusyError, match="already running"):
        study.run()


def test_small_space_ends_early(tmp_path):
    space = settings()["space"] | {
        "num_blocks": 1,
        "mixers": {"short_conv": {"kernel": [3, 5]}, "gqa": {"head_dim": 32}},
        "channel_mixers": {"swiglu": {"expansion": 2.0}},
        "scope": {},
    }
    small = recipe(space=space, reference={"layout": ["gqa"]}, budgets=[], initial=[])
    record = Study(small, tmp_path, evaluator=StandIn()).run()
    assert len(record.trials) == 3
    assert record.ended is not None
    assert "different specs were tried" in record.ended


def test_learning_rates_are_tuned_per_family(tmp_path):
    evaluator = StandIn()
    tuned = recipe(
        tuning={"learning_rates": [1e-3, 1.0000001e-3, 1e-2], "num_steps": 5}, num_trials=3
    )
    record = Study(tuned, tmp_path, evaluator=evaluator).run()
    assert set(record.learning_rates) == {"short_conv", "gqa"}
    for rate in record.learning_rates.values():
        assert len(rate.losses) == 3
    assert sum(call.startswith("rate-") for call in evaluator.calls) == 6


def test_events_tell_the_story(tmp_path):
    events: list[Event] = []
    Study(recipe(num_trials=5), tmp_path, evaluator=StandIn()).run(events.append)
    phases = [event.phase for event in events]
    assert list(dict.fromkeys(phases))[:4] == ["setup", "reference", "propose", "profile"]
    assert phases[-1] == "finished"
    told = [event for event in events if event.phase == "told"]
    # A trial that climbs is told once more.
    assert list(dict.fromkeys(event.trial for event in told)) == list(range(5))
    assert told[-1].seconds_left == 0.0
    assert told[-1].hypervolume > 0


def test_time_outside_the_stages_is_the_overhead(tmp_path):
    now = 0.0

    def clock() -> float:
        return now

    class Slow(StandIn):
        def _called(self, what, stage_file):
            nonlocal now
            now += 10.0
            super()._called(what, stage_file)

    def listen(event: Event) -> None:
        nonlocal now
        now += 1.0 if event.phase == "told" else 0.0

    record = Study(recipe(num_trials=4), tmp_path, evaluator=Slow(), clock=clock).run(listen)
    # The event of the last trial comes after its books are closed.
    assert record.seconds_by_phase["search"] == pytest.approx(3.0)
    phases = sum(record.seconds_by_phase.values())
    assert record.overhead == pytest.approx(3.0 / phases)


@pytest.mark.parametrize("file", ["profile", "rung-0"])
def test_a_lost_file_hides_nothing_else_and_can_be_done_again(tmp_path, file):
    study = Study(recipe(num_trials=3, budgets=[]), tmp_path, evaluator=StandIn(), clock=no_time)
    whole = study.run()
    path = study.folder / f"trials/000001/{file}.json"
    path.write_text(path.read_text().replace('"seconds', '"second', 1))
    record = study.read()
    assert record.trials[0] == whole.trials[0]
    assert record.trials[2] == whole.trials[2]
    hurt = record.trials[1]
    assert len(hurt.damaged) == 1
    assert f"000001/{file}.json: damaged" in hurt.damaged[0]
    assert hurt.by_rung == whole.trials[1].by_rung
    assert f"000001/{file}.json: damaged" in html.render(record)
    # Nothing is done unasked; what is done again are the lost stages alone.
    evaluator = StandIn()
    again = Study(recipe(num_trials=3, budgets=[]), tmp_path, evaluator=evaluator, clock=no_time)
    assert again.run() == record
    assert evaluator.calls == ["close"]
    assert again.run(redo=True) == whole
    assert [call.split()[0] for call in evaluator.calls[1:-1]] == [file]
    assert again.run(redo=True) == whole
