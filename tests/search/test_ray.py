"""A study on a Ray cluster: a node killed in the middle, a store on PostgreSQL, real workers."""

import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from archloop.errors import UserError
from archloop.proxy.record import TrainJob
from archloop.search.evaluator import CandidateFailed
from archloop.search.executors.ray import MOST_LOSSES, OnRay, on_node, on_ray
from archloop.search.hardware import HardwareEvaluator
from archloop.search.recipe.errors import RecipeError
from archloop.search.recipe.recipe import load
from archloop.search.study import Study
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.store import reading
from search.stand_in import StandIn, no_time, recipe

SPARE = {"spare": 1}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"train": {"GPU": 1}}, "train says nothing to executor local"),
        ({"name": "ray", "devices": ["cuda:0"]}, "devices says nothing to executor ray"),
        ({"name": "ray", "targets": {"phone": {}}}, "no such target; there are here"),
    ],
)
def test_what_the_recipe_says_must_mean_something(section, words):
    with pytest.raises(RecipeError, match=words):
        recipe(executor=section)


@pytest.fixture(scope="module")
def cluster():
    from services.ray_cluster import two_nodes

    with two_nodes() as (found, second):
        found.second = second
        yield found


def on(cluster, make, study: str = "test", **changes) -> OnRay:
    given = {"targets": {"here": {"phone": 1}}, "training": SPARE, "luggage": {}, **changes}
    return OnRay(cluster.address, study, make=make, **given)


class ByStage(StandIn):
    """Its calls say which stage they are, wherever the files of it lie on a node."""

    def profile(self, spec, reference, look, directory):
        self._stage = f"look {look}"
        return super().profile(spec, reference, look, directory)

    def train(self, job, directory):
        self._stage = f"rung {job.rung} seed {job.seed}"
        return super().train(job, directory)

    def _called(self, what: str, stage_file: Path) -> None:
        super()._called(f"{self._stage} {what.split()[-1]}", Path("node") / stage_file.name)


def stand_in(log: Path, files, part) -> StandIn:
    return ByStage(log, pause=0.1)


@pytest.mark.ci
@pytest.mark.timeout(400)
def test_a_node_killed_in_the_middle_loses_no_stage(cluster, tmp_path):
    from services.ray_cluster import SECOND
    from store import postgres

    log = tmp_path / "log"
    killed = []

    def kill() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 12:
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)
        killed.append(len(log.read_text().splitlines()))

    # It takes over: nodes can be added from the main thread alone.
    cluster.add_node(**SECOND)
    with postgres.server() as url:
        settings = recipe(
            num_trials=8, budgets=[], storage=url, executor={"name": "ray", "workers": 3}
        )
        evaluator = on(cluster, partial(stand_in, log))
        thread = threading.Thread(target=kill)
        thread.start()
        Study(settings, tmp_path, evaluator=evaluator, clock=no_time).run()
        thread.join()
        record = reading.read(tmp_path / "test", url)
    assert killed
    assert {trial.state for trial in record.trials} == {"complete"}
    assert len(record.trials) == 8
    calls = log.read_text().splitlines()
    assert len(calls) > killed[0]
    # The node had at most one measurement and two trainings; each was begun once more.
    again = [count - 1 for count in Counter(calls).values() if count > 1]
    assert sum(again) <= 3


class Deadly(StandIn):
    """Takes its process along."""

    def train(self, job, directory):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_what_takes_its_node_down_is_marked(cluster, tmp_path):
    evaluator = on(cluster, lambda *_: Deadly(), "deadly")
    spec = StackSpec(d_model=64, vocab_size=8, blocks=())
    with pytest.raises(CandidateFailed, match=f"lost {MOST_LOSSES} times") as caught:
        evaluator.train(TrainJob(spec=spec, num_steps=1, seed=0), tmp_path)
    assert caught.value.cause == "gone"
    evaluator.close()


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_resources_that_no_node_has_are_refused_before_anything_runs(cluster):
    evaluator = on(cluster, lambda *_: StandIn(), "refused", targets={"here": {"pixel": 1}})
    with pytest.raises(UserError, match=r"executor.targets.here: no node .*'pixel': 1"):
        evaluator.prepare()
    evaluator.close()
    with pytest.raises(UserError, match=r"executor.address='127.0.0.1:1': no Ray cluster"):
        OnRay("127.0.0.1:1", "none", {}, {}, on_node, {})


RECIPE = """
name: real
num_trials: 1
reference: {layout: [short_conv]}
space:
  ship: {d_model: 64, vocab_size: 256}
  proxy: {d_model: 64}
  num_blocks: 1
  mixers: {short_conv: {kernel: [3]}, gqa: {head_dim: 32}}
  channel_mixers: {swiglu: {expansion: [2.0]}}
targets: {here: {contexts: [64], threads: 1}}
profile: {processes: 2, timed_steps: 4, warmup_steps: 1, ready_timeout_s: 0}
threads: 1
proxy:
  corpus: {source: files, paths: [text.txt], heldout_share: 0.3}
  vocab_size: 260
  num_text_windows: 4
  rungs: [4, 8]
  training: {schedule: wsd, batch_size: 2, seq_len: 16}
executor: {name: ray, address: ADDRESS, train: {spare: 1}, targets: {here: {phone: 1}}}
"""


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_real_workers_give_what_they_give_here(cluster, tmp_path):
    lines = [f"entry {i} holds {i * i}\n" + "\n" * (i % 5 == 0) for i in range(6000)]
    (tmp_path / "text.txt").write_text("".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("ADDRESS", cluster.address))
    found = load(tmp_path / "recipe.yaml")
    block = BlockSpec(
        mixers=(MixerSpec(name="short_conv"),), channel_mixer=ChannelMixerSpec(name="swiglu")
    )
    spec = StackSpec(d_model=64, vocab_size=260, blocks=(block,))
    remote, here = on_ray(found), HardwareEvaluator(found, tmp_path / "artifacts")
    told = remote.prepare()
    assert told["corpus"] == here.prepare()["corpus"]
    rungs = {}
    for name, evaluator in (("remote", remote), ("here", here)):
        kept = tmp_path / f"{name}.checkpoint"
        first = TrainJob(spec=spec, num_steps=4, seed=1, checkpoint_to=kept)
        evaluator.train(first, tmp_path / name)
        second = TrainJob(spec=spec, rung=1, num_steps=8, seed=1, resume_from=kept)
        rung = evaluator.train(second, tmp_path / name)
        rungs[name] = rung.model_copy(update={"train_s": 0.0, "eval_s": 0.0})
        assert rung.continued_from > 0
    for field, value in rungs["here"]:
        assert (field, getattr(rungs["remote"], field)) == (field, value)
    measured = remote.profile(spec, spec, 1, tmp_path / "samples")
    assert measured.profiles["here"].num_processes == 2
    more = remote.profile(spec, spec, 2, tmp_path / "samples")
    assert more.profiles["here"].num_processes == 4
    assert more.profiles["here"].identity == measured.profiles["here"].identity
    remote.close()
    here.close()
