"""Every executor keeps its contract: in this process, in threads, and on a Ray cluster."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from archloop.proxy.record import Rung, TrainJob
from archloop.search.evaluator import CandidateFailed, Evaluator, Unsupported
from archloop.search.executors.base import Executor, Job, Measure, Train
from archloop.search.executors.local import Local
from archloop.search.executors.ray import OnRay
from archloop.search.executors.serial import Serial
from archloop.store.stages import Profiled
from report import studies
from search.stand_in import StandIn

Make = Callable[[type[StandIn]], Executor]

GOOD, BAD, UNSUPPORTED, SLOW = (studies.spec(pattern) for pattern in ("CA", "CC", "AA", "AC"))


class Worker(StandIn):
    """Formulas; some stacks fail, one takes long, and files are left where jobs say."""

    def profile(self, spec, reference, look, directory):
        if spec == UNSUPPORTED:
            raise Unsupported("here: the engine refuses it")
        earlier = (directory / "samples").read_text() if look > 1 else ""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "samples").write_text(f"{earlier}look {look}\n")
        return super().profile(spec, reference, look, directory)

    def train(self, job, directory):
        if job.spec == BAD:
            raise CandidateFailed("training: out of memory", "memory")
        if job.spec == SLOW:
            time.sleep(600)
        if job.weights_to is not None:
            (job.weights_to / "inner").mkdir(parents=True)
            (job.weights_to / "inner" / "tensor").write_bytes(b"\0weights")
        rung = super().train(job, directory)
        if job.resume_from is not None:
            assert job.checkpoint_to is not None
            job.checkpoint_to.write_text(f"{job.resume_from.read_text()}, rung {job.rung}")
        return rung


@pytest.fixture(scope="module")
def address() -> Iterator[Callable[[], str]]:
    """Of a cluster that is started when it is first asked for."""
    with ExitStack() as stack:
        found: list[str] = []

        def start() -> str:
            from services.ray_cluster import two_nodes

            if not found:
                cluster, _ = stack.enter_context(two_nodes())
                found.append(cluster.address)
            return found[0]

        yield start


@pytest.fixture(
    params=[
        "serial",
        "local",
        pytest.param("ray", marks=[pytest.mark.ci, pytest.mark.timeout(300)]),
    ]
)
def executor(request, address) -> Iterator[Executor]:
    if request.param == "ray":
        evaluator: Evaluator = OnRay(
            address(), "contract", {"here": {"phone": 1}}, {"CPU": 1}, lambda *_: Worker(), {}
        )
    else:
        evaluator = Worker()
    kind = Serial(evaluator, time.monotonic)
    found = kind if request.param == "serial" else Local(evaluator, time.monotonic, workers=3)
    evaluator.prepare()
    yield found
    found.close()
    evaluator.close()


def train(spec, directory: Path, **changes: object) -> Train:
    return Train(TrainJob(spec=spec, num_steps=1, seed=0, **changes), directory)


def ends(executor: Executor, jobs: list[Job]) -> dict[int, object]:
    """By index of the job, its value or its error."""
    tickets = {executor.submit(job): index for index, job in enumerate(jobs)}
    found = [executor.wait() for _ in jobs]
    assert all(0 <= ended.seconds < 300 for ended in found)
    by_index = {tickets[ended.ticket]: ended.value or ended.error for ended in found}
    assert len(by_index) == len(jobs)
    return by_index


def test_every_job_is_handed_back_once_with_what_came_of_it(executor, tmp_path):
    jobs = [
        train(GOOD, tmp_path / "0"),
        Measure(GOOD, GOOD, 1, tmp_path / "1" / "samples"),
        train(BAD, tmp_path / "2"),
        Measure(UNSUPPORTED, GOOD, 1, tmp_path / "3" / "samples"),
        train(GOOD, tmp_path / "4"),
    ]
    found = ends(executor, jobs)
    assert isinstance(found[0], Rung)
    assert found[0] == found[4]
    assert isinstance(found[1], Profiled)
    assert list(found[1].profiles) == ["here"]
    assert (type(found[2]), str(found[2])) == (CandidateFailed, "training: out of memory")
    assert found[2].cause == "memory"
    assert (type(found[3]), str(found[3])) == (Unsupported, "here: the engine refuses it")


def test_files_go_along_and_come_back(executor, tmp_path):
    samples = tmp_path / "trial" / "samples"
    for look in (1, 2):
        ends(executor, [Measure(GOOD, GOOD, look, samples)])
    assert (samples / "samples").read_text() == "look 1\nlook 2\n"
    first, second, weights = (tmp_path / name for name in ("rung-0", "rung-1", "weights"))
    ends(executor, [train(GOOD, tmp_path / "a", checkpoint_to=first, weights_to=weights)])
    assert (weights / "inner" / "tensor").read_bytes() == b"\0weights"
    job = train(GOOD, tmp_path / "b", rung=1, resume_from=first, checkpoint_to=second)
    ends(executor, [job])
    assert second.read_text() == "rung 0, rung 1"


def test_cancelled_jobs_are_not_handed_back_and_the_rest_goes_on(executor, tmp_path):
    if isinstance(executor.evaluator, Worker):
        # A thread that sleeps cannot be ended; in the others' place only what never began can.
        first = executor.submit(train(GOOD, tmp_path / "a"))
        if isinstance(executor, Serial):
            executor.cancel(first)
    else:
        slow = executor.submit(train(SLOW, tmp_path / "slow"))
        time.sleep(2)
        executor.cancel(slow)
    good = executor.submit(train(GOOD, tmp_path / "b"))
    tickets = [executor.wait().ticket]
    if isinstance(executor, Local) and isinstance(executor.evaluator, Worker):
        tickets.append(executor.wait().ticket)
        assert sorted(tickets) == [first, good]
    else:
        assert tickets == [good]
