"""An engine's own benchmark on a phone without Python: what is asked of it, and what goes wrong.

The phone is a scripted adb whose shell is this machine's, so that a benchmark really runs there:
one in Python in place of llama-bench, and, where there is one, llama.cpp's own.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archloop.devices.choice import DeviceChoice
from archloop.errors import UserError
from archloop.profiling import ProfileConfig, Target, profile, read_samples
from archloop.runtimes.llama_cpp import LlamaCpp
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers import wire
from archloop.workers.deaths import WorkerError
from archloop.workers.process import WorkerProcess
from services import llama_bench
from services.phone import scripted_adb

NATIVE, AARCH64 = "ARCHLOOP_LLAMA_BENCH", "ARCHLOOP_LLAMA_BENCH_AARCH64"
"""Environment variables that name a llama-bench: for this processor, and for a phone's."""
QEMU, LIBRARIES = "qemu-aarch64", "/usr/aarch64-linux-gnu"
MODEL_BYTES = 40_000_000
SWIGLU = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
SPEC = StackSpec(
    d_model=128,
    vocab_size=256,
    blocks=tuple(
        BlockSpec(mixers=(mixer,), channel_mixer=SWIGLU)
        for mixer in (
            MixerSpec(name="short_conv"),
            MixerSpec(name="gqa", config={"head_dim": 64}),
        )
    ),
)
QUICK = ProfileConfig(
    processes=2,
    repeats=0,
    warmup_steps=1,
    timed_steps=40,
    step_group=40,
    settle_steps=2,
    prefill_repeats=1,
    time_limit_s=120,
    ready_timeout_s=0,
)


def program(folder: Path, text: str) -> Path:
    """A folder of programs for the phone, with one that is called llama-bench."""
    folder.mkdir()
    (folder / "llama-bench").write_text(text)
    (folder / "llama-bench").chmod(0o755)
    return folder


def stand_in(folder: Path, before: str = ":") -> Path:
    """As `program`: the one in Python, behind a line of shell that sees its arguments."""
    found = program(folder, f'#!/bin/sh\n{before}\nexec "{sys.executable}" -IS "$0.py" "$@"\n')
    shutil.copy(Path(llama_bench.__file__), found / "llama-bench.py")
    return found


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Path]:
    with scripted_adb(tmp_path):
        yield tmp_path


def choice(phone: Path, programs: Path | None = None) -> DeviceChoice:
    settings = {} if programs is None else {"programs": str(programs)}
    return DeviceChoice(name="android", folder=str(phone / "data"), **settings)


@contextmanager
def runner(phone: Path, programs: Path) -> Iterator[WorkerProcess]:
    """A runner for the phone that has said hello, as a study starts it."""
    device, here = choice(phone, programs).open(), DeviceChoice().open()
    found = LlamaCpp().runner(device)
    assert found.here
    assert found.files == programs
    there = device.push(found.files)
    argv = [part.replace("{files}", there) for part in found.argv]
    worker = WorkerProcess(
        device, argv, phone / "log", threads=1, time_limit_s=60, role="candidate", run=here.run
    )
    try:
        yield worker
    finally:
        worker.kill()


@pytest.fixture
def artifact(phone: Path) -> str:
    """What the stand-in takes for a model, on the phone."""
    folder = phone / "data" / "an artifact"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(bytes(MODEL_BYTES))
    return str(folder)


def test_a_benchmark_program_answers_the_wire(phone: Path, artifact: str) -> None:
    with runner(phone, stand_in(phone / "programs")) as worker:
        told = worker.hello(runtime="llama_cpp")
        assert told.engine == "llama-bench 1.2.3 (build 7, commit abc)"
        empty = worker.ask(wire.Start(threads=3)).memory.peak_bytes
        opened = worker.ask(wire.Open(directory=artifact, max_context=80))
        assert (opened.prefill_pass, opened.state_bytes) == (80, None)
        prompt = worker.ask(wire.Prefill(ids=(1,) * 64, fresh=True))
        assert prompt.ms >= 1000 * 64 * llama_bench.TOKEN_S
        assert prompt.finite is None
        worker.ask(wire.Fill(num_tokens=64, seed=0))
        assert worker.ask(wire.Decode(ids=(1,) * 4, untimed=4)).ms == ()
        assert len(worker.ask(wire.Decode(ids=(1,) * 12, untimed=2)).ms) == 10
        # The process that was looked at held the model; that of the empty engine did not.
        reading = worker.ask(wire.ReadMemory())
        held = reading.memory.peak_bytes - empty
        assert 0.9 * MODEL_BYTES < held < 1.2 * MODEL_BYTES
        assert reading.cpu_s > 0
        with pytest.raises(WorkerError, match="llama-bench shows no logits") as caught:
            worker.ask(wire.Logits(parts=((1, 2),), steps=(3,)))
        assert caught.value.cause == "unsupported"


FAILURES = {
    1: ("echo '[{}]'; exit 0", "crash", "prefill: llama-bench printed no times but '"),
    2: ("kill -KILL $$", "memory", "prefill: llama-bench: killed because memory ran out"),
    3: ("kill -SEGV $$", "crash", "prefill: llama-bench: signal SIGSEGV"),
    4: ("echo 'write: No space left on device' >&2; exit 1", "disk", "No space left"),
    5: ("echo 'error: device offline' >&2; exit 1", "gone", "cannot be reached any more"),
    6: ("exit 126", "missing", "llama-bench does not run on the device"),
    7: ("exit 3", "crash", "llama-bench: exit status 3; no message"),
}
"""What a llama-bench does, by the tokens of its prompt; the cause and the words that are told."""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A runner whose program fails at the prompts of `FAILURES`."""
    folder = tmp_path_factory.mktemp("failing")
    cases = " ".join(f'*" -p {tokens} "*) {does};;' for tokens, (does, *_) in FAILURES.items())
    with (
        scripted_adb(folder),
        runner(folder, stand_in(folder / "programs", f'case " $* " in {cases} esac')) as worker,
    ):
        worker.hello(runtime="llama_cpp")
        yield worker


@pytest.mark.parametrize("tokens", FAILURES)
def test_why_a_run_came_to_nothing_is_told(tokens: int, failing: WorkerProcess) -> None:
    _, cause, words = FAILURES[tokens]
    with pytest.raises(WorkerError, match=words) as caught:
        failing.ask(wire.Prefill(ids=(1,) * tokens, fresh=True))
    assert caught.value.cause == cause


def test_a_model_that_does_not_load_ends_it_at_once(failing: WorkerProcess) -> None:
    with pytest.raises(WorkerError, match="failed to load model"):
        failing.ask(wire.Prefill(ids=(1,) * 9, fresh=True))


def test_a_program_for_another_processor_is_told_at_hello(phone: Path) -> None:
    programs = program(phone / "programs", "")
    (programs / "llama-bench").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(200))
    with runner(phone, programs) as worker:
        with pytest.raises(WorkerError, match="llama-bench does not run on the device") as caught:
            worker.hello(runtime="llama_cpp")
        assert caught.value.cause == "missing"


def test_the_program_ends_with_its_runner(phone: Path) -> None:
    before = f'case "$*" in *json*) echo $$ > "{phone}/pid"; exec sleep 100;; esac'
    with runner(phone, stand_in(phone / "programs", before)) as worker:
        worker.hello(runtime="llama_cpp")
        worker.send(wire.Open(directory="/", max_context=80))
        wait_for(lambda: (phone / "pid").exists() and bool((phone / "pid").read_text()))
        status = Path("/proc", (phone / "pid").read_text().strip(), "status")
        assert status.exists()
    wait_for(lambda: has_ended(status))


def has_ended(status: Path) -> bool:
    """Whether a process is gone, or waits for nothing but being asked how it ended."""
    try:
        return "zombie" in status.read_text()
    # It may go between being looked for and being read, or while it is read.
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(happened: object, most_s: float = 10.0) -> None:
    assert callable(happened)
    deadline = time.monotonic() + most_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_what_is_missing_is_told_in_a_line(phone: Path) -> None:
    with pytest.raises(UserError, match="setting `programs` names a folder here with llama-bench"):
        LlamaCpp().runner(choice(phone).open())
    with pytest.raises(UserError, match="holds no llama-bench; build it for the device's proc"):
        LlamaCpp().runner(choice(phone, phone).open())
    with pytest.raises(UserError, match="device android has no Python with archloop"):
        TorchEager().runner(choice(phone, phone).open())


def test_a_phone_tells_its_battery_and_its_heat(phone: Path) -> None:
    found = choice(phone).open().readings()
    assert (found.battery_percent, found.charging) == (86.0, True)
    # Of the processor's sensors, as they are now.
    assert (found.temperature_c, found.throttling) == (44.25, 1)
    assert found.busy_s is not None
    assert found.oom_kills is None


def measured(phone: Path, programs: Path, quant: str, folder: Path) -> None:
    """A stack of the LFM2 family, on the phone."""
    if missing := LlamaCpp().missing_to_export():
        pytest.skip(missing)
    target = Target(
        device=choice(phone, programs), runtime="llama_cpp", quant=quant, contexts=(24,), threads=1
    )
    found = profile(SPEC, target, QUICK, directory=folder)
    figures = found.figures[0]
    assert figures.ttft_ms.value > 0
    assert 0 < figures.decode_p50_ms.value <= figures.decode_p95_ms.value
    assert figures.peak_memory_bytes.value > figures.engine_empty_bytes.value > 1e6
    assert found.identity.device.startswith("Pixel 9 Tensor G4, ")
    assert ", run by llama-bench " in found.identity.runtime_version
    samples = read_samples(folder)
    assert [len(pair.candidate.contexts[0].decode_ms[0]) for pair in samples.pairs] == [40, 40]
    for words in ("no logits", "being charged", "severity 1 of 6"):
        assert any(words in flag for flag in found.flags), words
    assert not list((phone / "data").iterdir()), "what was pushed stayed"


@pytest.mark.ci
def test_a_stack_is_measured(phone: Path, tmp_path: Path) -> None:
    measured(phone, stand_in(phone / "programs"), "q8_0", tmp_path / "samples")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("before", "cause"),
    [
        ('case "$*" in *-pg*) echo rubbish; exit 3;; esac', "crash"),
        ('case "$*" in *-pg*) echo "error: device offline" > "$ADB_PHONE/says";; esac', "gone"),
    ],
)
def test_what_goes_wrong_ends_the_measurement(
    before: str, cause: str, phone: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorkerError) as caught:
        measured(phone, stand_in(phone / "programs", before), "q8_0", tmp_path / "samples")
    assert caught.value.cause == cause
    # Nothing can be removed from a phone that is gone.
    assert cause == "gone" or not list((phone / "data").iterdir())


@pytest.mark.engines
def test_llama_cpps_own_program(phone: Path, tmp_path: Path) -> None:
    found = os.environ.get(NATIVE) or shutil.which("llama-bench")
    if found is None:
        pytest.skip(f"set {NATIVE} to a llama-bench built for this machine")
    programs = program(phone / "programs", f'#!/bin/sh\nexec "{found}" "$@"\n')
    measured(phone, programs, "q4_0", tmp_path / "samples")


@pytest.mark.device
def test_llama_cpps_own_program_for_a_phones_processor(phone: Path, tmp_path: Path) -> None:
    found = os.environ.get(AARCH64)
    if found is None or shutil.which(QEMU) is None:
        pytest.skip(f"set {AARCH64} to a llama-bench built for aarch64, and install {QEMU}")
    text = f'#!/bin/sh\nexec {QEMU} -L {LIBRARIES} "$0.aarch64" "$@"\n'
    programs = program(phone / "programs", text)
    shutil.copy(found, programs / "llama-bench.aarch64")
    measured(phone, programs, "q4_0", tmp_path / "samples")
