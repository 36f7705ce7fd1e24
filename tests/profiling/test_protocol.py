"""Whole profiles on this machine: turns, ratios, A/A runs, second looks, faults."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from archloop import registry
from archloop.devices.energy import Counters
from archloop.profiling import (
    ProfileConfig,
    Target,
    extend,
    noise_floor,
    profile,
    profile_from_samples,
    read_samples,
)
from archloop.profiling.turns import Subject, measure_context
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers import wire
from archloop.workers.deaths import WorkerError

PLUGINS = Path(__file__).parent / "plugins"
TARGET = Target(contexts=(64, 1024), threads=1)
QUICK = ProfileConfig(
    processes=2,
    warmup_steps=2,
    timed_steps=12,
    step_group=5,
    settle_steps=1,
    prefill_repeats=2,
    full_prefill_tokens=512,
    time_limit_s=120,
    ready_timeout_s=0,
)

NO_MEMORY = wire.Memory(
    peak_bytes=0, resident_bytes=0, anonymous_bytes=0, file_bytes=0, swapped_bytes=0
)


def stack(*mixers: str, d_model: int = 64, vocab_size: int = 256) -> StackSpec:
    swiglu = ChannelMixerSpec(name="swiglu")
    blocks = tuple(BlockSpec(mixers=(MixerSpec(name=m),), channel_mixer=swiglu) for m in mixers)
    return StackSpec(d_model=d_model, vocab_size=vocab_size, blocks=blocks)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small candidate beside a reference of eight times the width."""
    folder, seen = tmp_path_factory.mktemp("measured"), []
    found = profile(
        stack("short_conv", "gqa"),
        TARGET,
        QUICK,
        reference=stack("short_conv", "gqa", d_model=512),
        directory=folder,
        artifacts=folder / "artifacts",
        progress=lambda share, doing: seen.append((share, doing)),
    )
    return found, folder, seen


def test_smaller_stack_is_faster_and_smaller(measured: Any) -> None:
    found, _, _ = measured
    assert [at.context for at in found.figures] == [64, 1024]
    assert found.latency_ratio.value < 0.7
    assert found.memory_ratio.value < 0.7
    assert found.ratios["1024"]["decode_p50_ms"].value < 1
    for at in found.figures:
        for value in (at.ttft_ms, at.decode_p50_ms, at.decode_p95_ms, at.peak_memory_bytes):
            assert 0 < value.low <= value.value <= value.high
        assert at.decode_p50_ms.value <= at.decode_p95_ms.value
        assert at.peak_memory_bytes.value > at.engine_empty_bytes.value
        assert at.prefill_tok_per_s.value == pytest.approx(at.context / at.ttft_ms.value * 1000)
    assert found.identity.runtime == "torch_eager"
    assert found.identity.contexts == (64, 1024)
    assert found.num_processes == 2
    assert 0 < found.seconds < 300
    assert any("1024 is composed" in flag for flag in found.flags)


@pytest.mark.ci
def test_every_sample_is_kept(measured: Any) -> None:
    found, folder, _ = measured
    samples = read_samples(folder)
    assert profile_from_samples(samples) == found
    assert len(samples.pairs) == 2
    for pair in samples.pairs:
        assert pair.reference is not None
        assert pair.after.time_s > pair.before.time_s
        for process in (pair.candidate, pair.reference):
            short, long = process.contexts
            assert len(short.ttft_ms) == 2
            assert not short.prefill_pass_ms
            assert not long.ttft_ms
            assert sorted({depth for depth, _ in long.prefill_pass_ms}) == [0, 128, 256, 384, 512]
            assert [len(block) for block in long.decode_ms] == [5, 5, 2]
            assert long.state_bytes > short.state_bytes


@pytest.mark.ci
def test_only_the_references_artifact_is_kept(measured: Any) -> None:
    _, folder, _ = measured
    kept = [json.loads(p.read_text()) for p in (folder / "artifacts").glob("*/manifest.json")]
    assert [manifest["spec"]["d_model"] for manifest in kept] == [512]
    assert sorted(p.name for p in folder.iterdir()) in (
        ["artifacts", "samples.json"],
        ["artifacts", "logs", "samples.json"],
    )


@pytest.mark.ci
def test_progress_rises_to_one(measured: Any) -> None:
    *_, seen = measured
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


@pytest.mark.ci
def test_each_further_look_adds_processes(measured: Any) -> None:
    found, folder, _ = measured
    for look, processes in ((2, 3), (3, 4)):
        more = extend(folder, 1, artifacts=folder / "artifacts")
        assert more.num_processes == processes
        assert more.seconds > found.seconds
        samples = read_samples(folder)
        assert samples.looks == look
        assert profile_from_samples(samples) == more


@pytest.mark.ci
def test_a_a_run_finds_no_difference(tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"contexts": (64,)})
    config = QUICK.model_copy(update={"timed_steps": 40})
    found = noise_floor(stack("gqa", d_model=256), target, config, directory=tmp_path)
    assert found.memory_ratio is not None
    assert found.memory_ratio.value == pytest.approx(1.0, abs=0.1)
    assert found.latency_ratio is not None
    assert 0.5 < found.latency_ratio.value < 2.0
    assert not list(tmp_path.glob("artifacts*"))


@pytest.fixture
def plugins() -> Iterator[None]:
    registry.add_folder(PLUGINS)
    yield
    registry._folders.pop(PLUGINS.resolve())


@pytest.mark.usefixtures("plugins")
def test_plugins_reach_the_worker_and_faults_reach_the_caller(tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"runtime": "faulty", "quant": "crash"})
    with pytest.raises(WorkerError) as caught:
        profile(stack("gqa"), target, QUICK, directory=tmp_path)
    assert (caught.value.cause, caught.value.role) == ("crash", "candidate")
    assert "SIGSEGV" in caught.value.detail
    assert not (tmp_path / "samples.json").exists()
    assert not list(tmp_path.glob("artifacts*"))


@pytest.mark.usefixtures("plugins")
def test_what_a_runtime_cannot_run_is_never_started(tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"runtime": "faulty", "quant": "fine"})
    odd = stack("gqa", vocab_size=255)
    with pytest.raises(WorkerError, match="unsupported: an odd vocabulary") as caught:
        profile(stack("gqa"), target, QUICK, reference=odd, directory=tmp_path)
    assert caught.value.role == "reference"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"runtime": "torch_eagre"}, "did you mean 'torch_eager'"),
        ({"device": {"name": "hots"}}, "did you mean 'host'"),
        ({"device": {"name": "host", "gup": 1}}, "device host has no setting 'gup'; did you mean"),
        ({"quant": "fp23"}, "did you mean 'fp32'"),
    ],
)
def test_wrong_names_are_refused_at_once(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        profile(stack("gqa"), Target(**change), directory=tmp_path)


class _Recorder:
    """Stands in for a worker: notes what was asked and checks that nobody else is being timed."""

    def __init__(
        self, name: str, events: list[str], busy: set[str], prefill_pass: int, plans: bool
    ) -> None:
        self.name, self.events, self.busy = name, events, busy
        self.opened = wire.Opened(
            open_s=0.0, state_bytes=0, prefill_pass=prefill_pass, plans_by_shape=plans
        )
        self.pending: list[Any] = []
        self.role = "candidate"

    def send(self, asked: Any) -> None:
        assert not self.busy, f"{asked.command} of {self.name} while {self.busy} is timed"
        self.pending.append(asked)
        if isinstance(asked, wire.Prefill | wire.Decode):
            self.busy.add(self.name)
            timed = len(asked.ids) - getattr(asked, "untimed", 0)
            self.events.append(f"{self.name} {asked.command} {timed}")

    def receive(self, message: Any) -> Any:
        asked = self.pending.pop(0)
        assert type(asked) is message
        self.busy.discard(self.name)
        if message is wire.Open:
            return self.opened
        if message is wire.Prefill:
            return wire.Prefilled(ms=1.0, finite=True)
        if message is wire.Decode:
            return wire.Decoded(ms=(1.0,) * (len(asked.ids) - asked.untimed), finite=True)
        return wire.Reading(memory=NO_MEMORY, cpu_s=0.0)

    def ask(self, asked: Any) -> Any:
        self.send(asked)
        return self.receive(type(asked))


def recorded(prefill_pass: int, plans: bool = False) -> tuple[list[Subject], list[str]]:
    """Candidate and reference on stand-in workers, and the list that notes what they do."""
    events: list[str] = []
    busy: set[str] = set()
    workers = [_Recorder(name, events, busy, prefill_pass, plans) for name in "cr"]
    subjects = [Subject(worker, 256, seed=0) for worker in workers]  # type: ignore[arg-type]
    for subject in subjects:
        subject.started = wire.Started(memory=NO_MEMORY, can_reset_peak=True, cpu_s=0.0)
    return subjects, events


def test_turns_alternate_and_never_overlap() -> None:
    subjects, events = recorded(prefill_pass=512)
    measure_context(subjects, 64, QUICK, first=0)
    assert events == [
        *("c prefill 64", "r prefill 64"),
        *("r prefill 64", "c prefill 64"),
        *("c prefill 64", "r prefill 64"),
        *("r decode 0", "c decode 0"),
        *("c decode 5", "r decode 5"),
        *("r decode 5", "c decode 5"),
        *("c decode 2", "r decode 2"),
    ]
    events.clear()
    measure_context(subjects, 2048, QUICK, first=1)
    assert events[:2] == ["r prefill 512", "c prefill 512"]
    assert len(subjects[0].contexts[1].prefill_pass_ms) == 5 * QUICK.prefill_repeats


@pytest.mark.parametrize("extra", [-1, 2])
def test_an_answer_without_a_time_for_each_step_is_none(
    extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects, _ = recorded(prefill_pass=512)
    answer = wire.Decoded(ms=(1.0,) * (5 + extra), finite=True)
    monkeypatch.setattr(subjects[0].worker, "ask", lambda asked: answer)
    words = f"{5 + extra} times were answered where 5 steps were to be timed"
    with pytest.raises(WorkerError, match=words) as caught:
        subjects[0].decode(2, 5)
    assert (caught.value.cause, caught.value.role) == ("crash", "candidate")


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_has_no_logarithm_is_no_answer(ms: float) -> None:
    with pytest.raises(ValidationError):
        wire.Prefilled.model_validate({"ms": ms, "finite": True})
    with pytest.raises(ValidationError):
        wire.Decoded.model_validate({"ms": [1.0, ms], "finite": True})


def test_each_subject_is_charged_what_was_used_while_it_decoded() -> None:
    """The counter is the machine's: it grows by 1 J while one decodes and by 3 J for the other."""
    subjects, events = recorded(prefill_pass=512)

    def counter() -> Counters:
        decodes = [event for event in events if "decode" in event]
        return Counters({"package": sum(1.0 if e[0] == "c" else 3.0 for e in decodes)}, {})

    for subject in subjects:
        subject.energy = counter
    measure_context(subjects, 64, QUICK, first=0)
    steps = [len(group) for group in subjects[0].contexts[0].decode_ms]
    for subject, joules in zip(subjects, (1.0, 3.0), strict=True):
        found = subject.contexts[0]
        settled = [count + QUICK.settle_steps for count in steps]
        assert found.decode_joules == tuple((count, joules) for count in settled)
        assert found.joules_per_token == pytest.approx(joules * len(steps) / sum(settled))


def test_a_prompt_is_prefilled_as_the_engine_takes_it_in() -> None:
    """An engine that takes 4,096 tokens at once is timed so, and warmed up at each shape."""
    subjects, events = recorded(prefill_pass=4096, plans=True)
    measure_context(subjects, 4096, QUICK, first=0)
    prefills = [event for event in events if "prefill" in event]
    assert prefills == [f"{name} prefill 4096" for name in "crrccr"]
    assert len(subjects[0].contexts[0].ttft_ms) == QUICK.prefill_repeats
    events.clear()
    measure_context(subjects, 4096 * 3, QUICK, first=0)
    assert len(events) - 8 == 2 * 5 * (1 + QUICK.prefill_repeats)
    long = subjects[0].contexts[1]
    assert long.prefill_pass_tokens == 4096
    assert sorted({depth for depth, _ in long.prefill_pass_ms}) == [0, 2048, 4096, 6144, 8192]
