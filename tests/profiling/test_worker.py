"""The worker process: memory that is honest, ends with its parent, and tells how it died."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from archloop.devices.base import Readings
from archloop.devices.host import Host
from archloop.runtimes.base import WORKER
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.cost import state_bytes
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers import wire
from archloop.workers.deaths import WorkerError
from archloop.workers.process import WorkerProcess

MIB = 1 << 20
PLUGINS = Path(__file__).parent / "plugins"
SPEC = StackSpec(
    d_model=64,
    vocab_size=256,
    blocks=(
        BlockSpec(mixers=(MixerSpec(name="gqa"),), channel_mixer=ChannelMixerSpec(name="swiglu")),
    ),
)
Start = Callable[..., WorkerProcess]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Start]:
    """Starts workers with their engine loaded, and ends them."""
    workers: list[WorkerProcess] = []

    def start(
        runtime: str = "torch_eager",
        device: Host | None = None,
        alarm_s: float = 60.0,
        memory_limit_bytes: int | None = None,
    ) -> WorkerProcess:
        log = tmp_path / f"worker-{len(workers)}.log"
        python = Host().python_argv()
        worker = WorkerProcess(
            device or Host(),
            [*python, "-m", WORKER],
            log,
            threads=1,
            time_limit_s=alarm_s,
            role="candidate",
        )
        workers.append(worker)
        worker.time_left_s = 60.0
        worker.hello(runtime=runtime, plugins=[str(PLUGINS)], memory_limit_bytes=memory_limit_bytes)
        worker.started = worker.ask(wire.Start(threads=1))  # type: ignore[attr-defined]
        return worker

    yield start
    for worker in workers:
        worker.kill()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from archloop import registry

    folder = tmp_path_factory.mktemp("artifact")
    export(registry.get("runtimes", "torch_eager")(), build_random(SPEC, 0), folder, "fp32")
    return folder


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports an artifact whose decode steps fail in a way."""
    from archloop import registry

    registry.add_folder(PLUGINS)
    decoder = build_random(SPEC, 0)

    def exported(fault: str) -> Path:
        folder = tmp_path_factory.mktemp(fault)
        export(registry.get("runtimes", "faulty")(), decoder, folder, fault)
        return folder

    yield exported
    registry._folders.pop(PLUGINS.resolve())


def decode(worker: WorkerProcess, steps: int = 3) -> wire.Decoded:
    return worker.ask(wire.Decode(ids=(7,) * steps))


def opened(worker: WorkerProcess, directory: Path, max_context: int) -> wire.Opened:
    return worker.ask(wire.Open(directory=str(directory), max_context=max_context))


def test_resident_memory_grows_by_the_state_when_it_is_filled(
    launch: Start, artifact: Path
) -> None:
    """Beside a short context, a long one takes just as much more memory as its state is larger."""
    worker = launch()
    found = []
    for context in (1 << 8, 1 << 17):
        state = opened(worker, artifact, context).state_bytes
        assert state == state_bytes(SPEC, context, torch.float32)
        worker.ask(wire.Fill(num_tokens=100, seed=0))
        decode(worker)
        memory = worker.ask(wire.ReadMemory()).memory
        assert memory.peak_bytes >= memory.resident_bytes >= memory.anonymous_bytes
        found.append((state, memory.resident_bytes))
    (short_state, short), (long_state, long) = found
    assert long_state > 60 * MIB
    assert long - short == pytest.approx(long_state - short_state, rel=0.02)


def test_the_peak_starts_anew_with_each_context(launch: Start, artifact: Path) -> None:
    worker = launch()
    peaks = []
    for context in (1 << 17, 1 << 10):
        opened(worker, artifact, context)
        worker.ask(wire.Fill(num_tokens=10, seed=0))
        peaks.append(worker.ask(wire.ReadMemory()).memory.peak_bytes)
    if not worker.started.can_reset_peak:  # type: ignore[attr-defined]
        pytest.skip("this kernel does not let a process reset its peak")
    assert peaks[0] - peaks[1] > 50 * MIB


def test_weights_are_resident_once(launch: Start, tmp_path: Path) -> None:
    """Loading must not hold the file beside the parameters, or a peak would count both."""
    spec = SPEC.replace(vocab_size=1 << 19)
    TorchEager.name = TorchEager.name or "torch_eager"
    manifest = export(TorchEager(), build_random(spec, 0), tmp_path, "fp32", parity=False)
    weights = sum(manifest.weight_bytes.values())
    worker = launch()
    empty = worker.started.memory.peak_bytes  # type: ignore[attr-defined]
    opened(worker, tmp_path, 64)
    peak = worker.ask(wire.ReadMemory()).memory.peak_bytes
    assert weights > 128 * MIB
    assert weights <= peak - empty <= 1.15 * weights + 16 * MIB


@pytest.mark.gpu
def test_on_a_gpu_the_cards_memory_counts(launch: Start, tmp_path: Path) -> None:
    """Weights once and the state, anew with each context, and prompts of any length at once."""
    from archloop import registry

    spec = SPEC.replace(d_model=256, vocab_size=1 << 18)
    runtime = registry.get("runtimes", "torch_cuda")()
    manifest = export(runtime, build_random(spec, 0), tmp_path, "bf16", parity=False)
    weights = sum(manifest.weight_bytes.values())
    worker = launch("torch_cuda")
    empty = worker.started.memory.device_peak_bytes  # type: ignore[attr-defined]
    net = []
    for context in (1 << 17, 1 << 10):
        answer = opened(worker, tmp_path, context)
        assert answer.plans_by_shape
        assert answer.prefill_pass > 4096
        worker.ask(wire.Fill(num_tokens=100, seed=0))
        decode(worker)
        peak = worker.ask(wire.ReadMemory()).memory.device_peak_bytes
        net.append(peak - empty - weights - answer.state_bytes)
    assert weights > 128 * MIB
    # The rest: rotation tables as long as the context, activations, gaps of the allocator.
    assert all(0 <= rest <= 120 * MIB for rest in net), net


def test_times_every_step(launch: Start, artifact: Path) -> None:
    worker = launch()
    opened(worker, artifact, 64)
    answer = worker.ask(wire.Prefill(ids=tuple(range(20)), fresh=True))
    assert answer.finite
    assert answer.ms > 0
    steps = worker.ask(wire.Decode(ids=tuple(range(9)), untimed=2)).ms
    assert len(steps) == 7
    assert min(steps) > 0


@pytest.mark.parametrize(
    "fault, cause, words",
    [
        ("crash", "crash", "SIGSEGV"),
        pytest.param("hang", "timeout", "time limit of 4 s", marks=pytest.mark.ci),
        pytest.param("eat", "memory", "decode", marks=pytest.mark.ci),
        ("raise", "unsupported", "this engine has no second token"),
        ("bug", "crash", "shapes do not match"),
    ],
)
def test_faults_are_told_apart(
    fault: str, cause: str, words: str, launch: Start, faulty: Callable[[str], Path]
) -> None:
    limit = 4 << 30 if fault == "eat" else None
    worker = launch("faulty", memory_limit_bytes=limit)
    opened(worker, faulty(fault), 128)
    if cause == "timeout":
        worker.time_left_s = worker.time_limit_s = 4
    with pytest.raises(WorkerError, match=words) as caught:
        decode(worker)
    assert (caught.value.cause, caught.value.role) == (cause, "candidate")
    assert "\n" not in str(caught.value)


def test_what_an_engine_prints_is_not_an_answer(
    launch: Start, faulty: Callable[[str], Path]
) -> None:
    worker = launch("faulty")
    opened(worker, faulty("loud"), 128)
    assert len(decode(worker, steps=3).ms) == 3
    assert b"{not an answer" in worker.log.read_bytes()


class _KillingHost(Host):
    """Counts an out-of-memory kill between any two readings."""

    kills = 0

    def readings(self) -> Readings:
        self.kills += 1
        return super().readings().model_copy(update={"oom_kills": self.kills})


@pytest.mark.parametrize("device, cause", [(Host(), "crash"), (_KillingHost(), "memory")])
def test_a_kill_counts_as_memory_if_the_device_says_so(
    device: Host, cause: str, launch: Start
) -> None:
    worker = launch(device=device)
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError) as caught:
        worker.ask(wire.ReadMemory())
    assert caught.value.cause == cause


@pytest.mark.ci
@pytest.mark.parametrize("fault", ["hang", "deaf"])
def test_a_hanging_worker_ends_without_its_parent(
    fault: str, launch: Start, faulty: Callable[[str], Path]
) -> None:
    """By its closed input, or by the kernel's alarm if the interpreter itself is stuck."""
    worker = launch("faulty", alarm_s=60 if fault == "hang" else 1)
    opened(worker, faulty(fault), 128)
    worker.send(wire.Decode(ids=(7,)))
    time.sleep(0.3)
    assert worker.process.poll() is None
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    code = worker.process.wait(timeout=20)
    assert code == (0 if fault == "hang" else -signal.SIGALRM)


def test_nothing_is_left_after_a_kill(launch: Start) -> None:
    worker = launch()
    worker.kill()
    listed = subprocess.run(
        ["ps", "-o", "pid=", "-g", str(worker.process.pid)], capture_output=True
    )
    assert not listed.stdout.strip()
    assert worker.process.returncode == -signal.SIGKILL
