"""The evaluator of real studies: what it asks of its workers."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from archloop.devices import host
from archloop.devices.base import DeviceError
from archloop.devices.host import Host
from archloop.devices.lease import LeaseCancelledError, lease, told_waiting
from archloop.errors import UserError
from archloop.profiling import profile_from_samples, protocol
from archloop.profiling.artifacts import writing
from archloop.profiling.record import Profile
from archloop.proxy.record import Rung, TrainJob
from archloop.proxy.trainer import Trainer
from archloop.proxy.worker import Train
from archloop.runtimes.torch_eager import TorchEager
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed
from archloop.search.hardware import HardwareEvaluator
from archloop.search.recipe.recipe import Recipe
from archloop.search.study import Study
from archloop.stack.spec import StackSpec
from archloop.workers.cancelling import cancelled_by
from archloop.workers.deaths import Cause, WorkerError
from archloop.workers.mps import MpsError
from profiling.samples import SPEC, pair, process, samples
from search.stand_in import recipe


@pytest.mark.parametrize(("rung", "num_steps"), [(0, 10), (2, 40), (0, 7), (2, 7)])
def test_a_job_is_trained_for_its_own_number_of_steps(
    rung: int, num_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Train] = []

    def trained(_: Trainer, train: Train, directory: Path) -> Rung:
        asked.append(train)
        return Rung(
            index=train.job.rung,
            num_steps=train.job.num_steps,
            scores={},
            losses=(),
            num_tokens=0,
            diverged=True,
            learning_rate=1e-3,
            train_s=0.0,
            eval_s=0.0,
            precision="bfloat16",
        )

    monkeypatch.setattr(Trainer, "train", trained)
    spec = StackSpec(d_model=64, vocab_size=8, blocks=())
    job = TrainJob(spec=spec, rung=rung, num_steps=num_steps, seed=0)
    result = HardwareEvaluator(recipe(), tmp_path).train(job, tmp_path)
    assert (result.index, result.num_steps) == (rung, num_steps)
    assert result.precision == "bfloat16"
    [training] = [each.config.training_of(each.job.num_steps, None) for each in asked]
    assert training.num_steps == num_steps


def test_a_device_lost_before_a_measurement_marks_the_trial_as_one_lost_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: Host) -> None:
        raise DeviceError("gone", "the cable is out; plug it in")

    monkeypatch.setattr(Host, "describe", lost)
    spec = StackSpec(d_model=64, vocab_size=8, blocks=())
    with pytest.raises(CandidateFailed, match="the cable is out"):
        HardwareEvaluator(recipe(), tmp_path).profile(spec, spec, 1, tmp_path)


def test_a_device_that_is_not_there_is_no_fault_of_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: Host) -> None:
        raise DeviceError("gone", "the cable is out; plug it in")

    monkeypatch.setattr(Host, "describe", lost)
    study = Study(recipe(), tmp_path, evaluator=HardwareEvaluator(recipe(), tmp_path))
    with pytest.raises(UserError, match=r"recipe 'test': targets\.here: the cable is out") as told:
        study.run()
    assert "corpus" not in str(told.value)


@pytest.mark.parametrize("cause", ["disk", "memory", "gone"])
def test_why_a_worker_died_stays_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Cause
) -> None:
    def died(*_: object) -> None:
        raise WorkerError(cause, "one line")

    monkeypatch.setattr(Trainer, "train", died)
    spec = StackSpec(d_model=64, vocab_size=8, blocks=())
    job = TrainJob(spec=spec, num_steps=5, seed=0)
    with pytest.raises(CandidateFailed, match="one line") as told:
        HardwareEvaluator(recipe(), tmp_path).train(job, tmp_path)
    assert told.value.cause == cause


def test_a_reference_that_cannot_be_measured_any_more_is_no_fault_of_a_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise WorkerError("unsupported", "model.safetensors is gone", "reference")

    monkeypatch.setattr("archloop.search.hardware.profile", refused)
    spec = StackSpec(d_model=64, vocab_size=8, blocks=())
    evaluator = HardwareEvaluator(recipe(), tmp_path)
    with pytest.raises(StudyError, match=r"here: the reference cannot be measured.*is gone.*on$"):
        evaluator.profile(spec, spec.replace(d_model=128), 1, tmp_path / "samples")


class _Service:
    """Stands in for NVIDIA's."""

    running = 0

    def __init__(self) -> None:
        type(self).running += 1

    def close(self) -> None:
        type(self).running -= 1


def _shared(**executor: object) -> Recipe:
    return recipe(
        proxy={"rungs": [10], "device": "cuda"}, budgets=[], executor={"per_device": 2, **executor}
    )


def test_trainings_that_share_a_card_join_a_service_that_ends_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archloop.search.hardware.Mps", _Service)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    evaluator = HardwareEvaluator(_shared(), tmp_path)
    assert _Service.running == 0
    assert evaluator.prepare()["cuda_mps"] == "on"
    assert evaluator.prepare()["cuda_mps"] == "on"
    assert _Service.running == 1
    evaluator.close()
    assert _Service.running == 0
    assert HardwareEvaluator(_shared(cuda_mps=False), tmp_path).prepare()["cuda_mps"] == "off"


def test_without_a_service_trainings_take_turns_unless_the_recipe_insists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MpsError("it is not installed")

    monkeypatch.setattr("archloop.search.hardware.Mps", missing)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.warns(UserWarning, match="without MPS: it is not installed"):
        found = HardwareEvaluator(_shared(), tmp_path).prepare()
    assert found["cuda_mps"] == "off: it is not installed"
    study = Study(
        _shared(cuda_mps=True),
        tmp_path,
        evaluator=HardwareEvaluator(_shared(cuda_mps=True), tmp_path),
    )
    with pytest.raises(UserError, match=r"executor\.cuda_mps: it is not installed; leave it out"):
        study.run()


def test_a_card_that_is_not_there_is_said_of_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_cards", lambda: ())
    asked = recipe(targets={"here": {"contexts": [64], "device": {"name": "host", "gpu": 7}}})
    with pytest.raises(UserError, match=r"targets\.here: device host has no gpu 7.*leave gpu out"):
        HardwareEvaluator(asked, tmp_path).prepare()


def test_another_look_at_what_has_changed_ends_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe()
    settings = {"target": asked.targets["here"], "config": asked.profile}
    pairs = [pair(process(scale), process(1.0)) for scale in (1.0, 1.1)]
    before = samples(*pairs).model_copy(update=settings)
    before.write(tmp_path / "here")
    identity = before.identity.model_copy(update={"threads": before.identity.threads + 1})
    changed = before.model_copy(update={"identity": identity})
    monkeypatch.setattr(protocol._Measurement, "measure", lambda *_, **__: changed)
    with pytest.raises(StudyError, match=r"here: threads was \d, is \d; go back to what it was"):
        HardwareEvaluator(asked, tmp_path).profile(SPEC, SPEC, 2, tmp_path)


def test_another_look_at_graphs_of_other_code_takes_all_looks_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_LEASES", str(tmp_path / "leases"))
    asked, runtime, calls = recipe(), TorchEager(), list[str]()
    pairs = [pair(process(scale), process(1.0)) for scale in (1.0, 1.1)]
    made = samples(*pairs)
    identity = made.identity.model_copy(update={"runtime_version": runtime.version()})
    settings = {"target": asked.targets["here"], "config": asked.profile, "identity": identity}

    def measured(name: str) -> Callable[..., Profile]:
        def call(*_: object, **__: object) -> Profile:
            calls.append(name)
            return profile_from_samples(made)

        return call

    for name in ("profile", "extend"):
        monkeypatch.setattr(f"archloop.search.hardware.{name}", measured(name))
    for written_by in (f"{runtime.written_by()} before", writing(runtime), None):
        made.model_copy(update={**settings, "written_by": written_by}).write(tmp_path / "here")
        HardwareEvaluator(asked, tmp_path).profile(SPEC, SPEC, 2, tmp_path)
    assert calls == ["profile", "extend", "extend", "extend"]
    made.model_copy(update={**settings, "written_by": "1 before"}).write(tmp_path / "here")
    with pytest.raises(protocol.ChangedIdentityError, match=r"other code \(1 before\)"):
        protocol.extend(tmp_path / "here")


def _trained_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices of trainings, as they begin."""
    found: list[str] = []

    def train(_: Trainer, asked: Train, directory: Path) -> Rung:
        found.append(asked.config.device)
        raise WorkerError("crash", "enough")

    monkeypatch.setattr(Trainer, "train", train)
    return found


def test_a_training_takes_the_place_whose_card_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found, spec = _trained_on(monkeypatch), StackSpec(d_model=64, vocab_size=8, blocks=())
    asked = recipe(
        proxy={"rungs": [10], "device": "cuda"}, executor={"devices": ["cuda:0", "cuda:1"]}
    )
    evaluator = HardwareEvaluator(asked, tmp_path)
    job = TrainJob(spec=spec, num_steps=5, seed=0)
    # The first card is being measured on, for as long as anyone cares to wait.
    with lease("host card 0", alone=True):
        for _ in range(2):
            with pytest.raises(CandidateFailed):
                evaluator.train(job, tmp_path)
    assert found == ["cuda:1", "cuda:1"]
    with lease("host card 1", alone=True), pytest.raises(CandidateFailed):
        evaluator.train(job, tmp_path)
    assert found[2:] == ["cuda:0"]


def test_a_training_leaves_the_card_that_is_measured_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    target = {"runtime": "torch_cuda", "quant": "bf16", "device": {"name": "host", "gpu": 0}}
    asked = recipe(
        targets={"card": target},
        budgets=[],
        proxy={"rungs": [10], "device": "cuda"},
        executor={"devices": ["cuda:0", "cuda:1", "cuda:1"]},
    )
    evaluator = HardwareEvaluator(asked, tmp_path)
    with evaluator._place() as first, evaluator._place() as second, evaluator._place() as third:
        assert [place.device for place in (first, second, third)] == ["cuda:1", "cuda:1", "cuda:0"]


def test_a_training_that_finds_no_free_card_stands_in_line_at_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("archloop.search.hardware.IN_LINE_S", 0.0)
    found = _trained_on(monkeypatch)
    asked = recipe(
        proxy={"rungs": [10], "device": "cuda"}, executor={"devices": ["cuda:0", "cuda:1"]}
    )
    job = TrainJob(spec=StackSpec(d_model=64, vocab_size=8, blocks=()), num_steps=5, seed=0)
    evaluator = HardwareEvaluator(asked, tmp_path)
    in_line = threading.Event()

    def listen(what: str) -> None:
        if what.startswith("host card 0"):
            in_line.set()

    def train() -> None:
        with told_waiting(listen), pytest.raises(CandidateFailed):
            evaluator.train(job, tmp_path)

    monkeypatch.setattr("archloop.devices.lease.TELL_AFTER_S", 0.0)
    training = threading.Thread(target=train)
    with lease("host card 1", alone=True):
        with lease("host card 0", alone=True):
            training.start()
            assert in_line.wait(60)
        # The gate was kept meanwhile, so it is the first to have the card.
        training.join(60)
    assert found == ["cuda:0"]


def test_who_waits_for_a_place_says_so_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_LEASES", str(tmp_path / "leases"))
    monkeypatch.setattr("archloop.devices.lease.TELL_AFTER_S", 0.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found, told = _trained_on(monkeypatch), threading.Event()
    asked = recipe(
        proxy={"rungs": [10], "device": "cuda"}, executor={"devices": ["cuda:0", "cuda:1"]}
    )
    evaluator = HardwareEvaluator(asked, tmp_path)
    words: list[str] = []

    def listen(what: str) -> None:
        words.append(what)
        told.set()

    job = TrainJob(spec=StackSpec(d_model=64, vocab_size=8, blocks=()), num_steps=5, seed=0)
    with (
        lease("host card 0", alone=True),
        lease("host card 1", alone=True),
        told_waiting(listen),
        cancelled_by(told),
        pytest.raises(LeaseCancelledError),
    ):
        evaluator.train(job, tmp_path)
    assert words == ["a place to train"]
    assert found == []


def test_what_was_measured_is_told_again_while_the_device_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_LEASES", str(tmp_path / "leases"))
    asked, stop = recipe(), threading.Event()
    pairs = [pair(process(scale), process(1.0)) for scale in (1.0, 1.1)]
    settings = {"target": asked.targets["here"], "config": asked.profile}
    samples(*pairs).model_copy(update=settings).write(tmp_path / "here")
    stop.set()
    with lease("host", alone=True), cancelled_by(stop):
        evaluator = HardwareEvaluator(asked, tmp_path)
        found = evaluator.profile(SPEC, SPEC, 1, tmp_path).profiles["here"]
        assert found.num_processes == 2
        with pytest.raises(LeaseCancelledError):
            evaluator.profile(SPEC, SPEC, 2, tmp_path)


def test_a_stack_that_breaks_a_budget_on_one_target_is_measured_on_none_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(targets={name: {"contexts": [64]} for name in ("first", "second", "third")})
    measured: list[str] = []

    def profiled(_: HardwareEvaluator, name: str, *__: object) -> Profile:
        measured.append(name)
        scale = 3.0 if name == "second" else 0.5
        pairs = [pair(process(each * scale), process(1.0)) for each in (1.0, 1.01)]
        return profile_from_samples(samples(*pairs))

    monkeypatch.setattr(HardwareEvaluator, "_profile", profiled)
    evaluator = HardwareEvaluator(asked, tmp_path)
    found = evaluator.profile(SPEC, SPEC.replace(d_model=128), 1, tmp_path)
    assert measured == list(found.profiles) == ["first", "second"]
    # The reference preset is compared with on every target, whatever it breaks.
    assert list(evaluator.profile(SPEC, SPEC, 1, tmp_path).profiles) == ["first", "second", "third"]
