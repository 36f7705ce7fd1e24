"""The worker process: memory that is honest, ends with its parent, and tells how it died."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from archloop.devices.base import Readings
from archloop.devices.host import Host
from archloop.runtimes.base import build_random
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.cost import state_bytes
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers.client import MeasurementError, WorkerProcess

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
        worker = WorkerProcess(device or Host(), "candidate", log, threads=1, time_limit_s=60.0)
        workers.append(worker)
        worker.started = worker.ask(  # type: ignore[attr-defined]
            "start",
            runtime=runtime,
            threads=1,
            plugins=[str(PLUGINS)],
            memory_limit_bytes=memory_limit_bytes,
            time_limit_s=alarm_s,
        )
        return worker

    yield start
    for worker in workers:
        worker.kill()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from archloop import registry

    folder = tmp_path_factory.mktemp("artifact")
    registry.get("runtimes", "torch_eager")().export(build_random(SPEC, 0), folder, "fp32")
    return folder


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports an artifact whose decode steps fail in a way."""
    from archloop import registry

    registry.add_folder(PLUGINS)
    decoder = build_random(SPEC, 0)

    def export(fault: str) -> Path:
        folder = tmp_path_factory.mktemp(fault)
        registry.get("runtimes", "faulty")().export(decoder, folder, fault)
        return folder

    yield export
    registry._folders.pop(PLUGINS.resolve())


def decode(worker: WorkerProcess, steps: int = 3) -> dict[str, Any]:
    return worker.ask("decode", untimed=0, timed=steps, seed=0, vocab_size=SPEC.vocab_size)


def test_resident_memory_grows_by_the_state_when_it_is_filled(
    launch: Start, artifact: Path
) -> None:
    """Beside a short context, a long one takes just as much more memory as its state is larger."""
    worker = launch()
    found = []
    for context in (1 << 8, 1 << 17):
        opened = worker.ask("open", directory=str(artifact), max_context=context)
        assert opened["state_bytes"] == state_bytes(SPEC, context, torch.float32)
        worker.ask("fill", num_tokens=100, seed=0)
        decode(worker)
        memory = worker.ask("memory")["memory"]
        assert memory["peak_bytes"] >= memory["resident_bytes"] >= memory["anonymous_bytes"]
        found.append((opened["state_bytes"], memory["resident_bytes"]))
    (short_state, short), (long_state, long) = found
    assert long_state > 60 * MIB
    assert long - short == pytest.approx(long_state - short_state, rel=0.02)


def test_the_peak_starts_anew_with_each_context(launch: Start, artifact: Path) -> None:
    worker = launch()
    peaks = []
    for context in (1 << 17, 1 << 10):
        worker.ask("open", directory=str(artifact), max_context=context)
        worker.ask("fill", num_tokens=10, seed=0)
        peaks.append(worker.ask("memory")["memory"]["peak_bytes"])
    if not worker.started["can_reset_peak"]:  # type: ignore[attr-defined]
        pytest.skip("this kernel does not let a process reset its peak")
    assert peaks[0] - peaks[1] > 50 * MIB


def test_weights_are_resident_once(launch: Start, tmp_path: Path) -> None:
    """Loading must not hold the file beside the parameters, or a peak would count both."""
    spec = SPEC.replace(vocab_size=1 << 19)
    TorchEager.name = TorchEager.name or "torch_eager"
    manifest = TorchEager().export(build_random(spec, 0), tmp_path, "fp32", parity=False)
    weights = sum(manifest.weight_bytes.values())
    worker = launch()
    baseline = worker.started["baseline"]["peak_bytes"]  # type: ignore[attr-defined]
    worker.ask("open", directory=str(tmp_path), max_context=64)
    peak = worker.ask("memory")["memory"]["peak_bytes"]
    assert weights > 128 * MIB
    assert weights <= peak - baseline <= 1.15 * weights + 16 * MIB


@pytest.mark.gpu
def test_on_a_gpu_the_cards_memory_counts(launch: Start, tmp_path: Path) -> None:
    """Weights once and the state, anew with each context, and prompts of any length at once."""
    from archloop import registry

    spec = SPEC.replace(d_model=256, vocab_size=1 << 18)
    runtime = registry.get("runtimes", "torch_cuda")()
    manifest = runtime.export(build_random(spec, 0), tmp_path, "bf16", parity=False)
    weights = sum(manifest.weight_bytes.values())
    worker = launch("torch_cuda")
    baseline = worker.started["baseline"]["device_peak_bytes"]  # type: ignore[attr-defined]
    net = []
    for context in (1 << 17, 1 << 10):
        opened = worker.ask("open", directory=str(tmp_path), max_context=context)
        assert opened["plans_by_shape"]
        assert opened["prefill_chunk"] > 4096
        worker.ask("fill", num_tokens=100, seed=0)
        decode(worker)
        peak = worker.ask("memory")["memory"]["device_peak_bytes"]
        net.append(peak - baseline - weights - opened["state_bytes"])
    assert weights > 128 * MIB
    # The rest: rotation tables as long as the context, activations, gaps of the allocator.
    assert all(0 <= rest <= 120 * MIB for rest in net), net


def test_times_every_step(launch: Start, artifact: Path) -> None:
    worker = launch()
    worker.ask("open", directory=str(artifact), max_context=64)
    answer = worker.ask("prefill", num_tokens=20, seed=0, vocab_size=256, fresh=True)
    assert answer["finite"]
    assert answer["ms"] > 0
    steps = worker.ask("decode", untimed=2, timed=7, seed=0, vocab_size=256)["ms"]
    assert len(steps) == 7
    assert min(steps) > 0


@pytest.mark.parametrize(
    "fault, kind, words",
    [
        ("crash", "crash", "SIGSEGV"),
        ("hang", "timeout", "time limit of 4 s"),
        ("eat", "memory", "decode"),
        ("raise", "unsupported", "this engine has no second token"),
        ("bug", "crash", "shapes do not match"),
    ],
)
def test_faults_are_told_apart(
    fault: str, kind: str, words: str, launch: Start, faulty: Callable[[str], Path]
) -> None:
    limit = 4 << 30 if fault == "eat" else None
    worker = launch("faulty", memory_limit_bytes=limit)
    worker.ask("open", directory=str(faulty(fault)), max_context=128)
    if kind == "timeout":
        worker.time_left_s = worker.time_limit_s = 4
    with pytest.raises(MeasurementError, match=words) as caught:
        decode(worker)
    assert (caught.value.kind, caught.value.role) == (kind, "candidate")
    assert "\n" not in str(caught.value)


def test_what_an_engine_prints_is_not_an_answer(
    launch: Start, faulty: Callable[[str], Path]
) -> None:
    worker = launch("faulty")
    worker.ask("open", directory=str(faulty("loud")), max_context=128)
    assert len(decode(worker, steps=3)["ms"]) == 3
    assert b"{not an answer" in worker.log.read_bytes()


class _KillingHost(Host):
    """Counts an out-of-memory kill between any two readings."""

    kills = 0

    def readings(self) -> Readings:
        self.kills += 1
        return super().readings().model_copy(update={"oom_kills": self.kills})


@pytest.mark.parametrize("device, kind", [(Host(), "crash"), (_KillingHost(), "memory")])
def test_a_kill_counts_as_memory_if_the_device_says_so(
    device: Host, kind: str, launch: Start
) -> None:
    worker = launch(device=device)
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(MeasurementError) as caught:
        worker.ask("memory")
    assert caught.value.kind == kind


@pytest.mark.parametrize("fault", ["hang", "deaf"])
def test_a_hanging_worker_ends_without_its_parent(
    fault: str, launch: Start, faulty: Callable[[str], Path]
) -> None:
    """By its closed input, or by the kernel's alarm if the interpreter itself is stuck."""
    worker = launch("faulty", alarm_s=60 if fault == "hang" else 1)
    worker.ask("open", directory=str(faulty(fault)), max_context=128)
    worker.send("decode", untimed=0, timed=1, seed=0, vocab_size=256)
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
