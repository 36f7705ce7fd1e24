"""One process of the candidate and one of the reference, measured in turns, never at once.

The two start together (loading an engine takes seconds and disturbs nothing yet), then alternate:
a prefill each, a group of decode steps each, and who goes first alternates too. What drifts
meanwhile, such as the clock or a neighbour, meets both alike and leaves their ratio.
"""

from collections.abc import Callable, Iterator

import numpy as np

from archloop.devices.energy import Counters, spent
from archloop.profiling.config import ProfileConfig
from archloop.profiling.samples import ContextSamples, ProcessSamples
from archloop.workers import wire
from archloop.workers.deaths import WorkerError
from archloop.workers.process import WorkerProcess

_PASS_DEPTHS = 5
_STEP_TOKENS = 20
"""Tokens of a prompt that take about as long as a decode step, to foresee how long all takes."""
_WARM_TOKENS = 128


class Subject:
    """An artifact in a worker of its own, and the samples taken from it so far."""

    def __init__(
        self,
        worker: WorkerProcess,
        vocab_size: int,
        seed: int,
        energy: Callable[[], Counters | None] = lambda: None,
    ) -> None:
        self.worker = worker
        self.energy = energy
        self.vocab_size = vocab_size
        self.seed = seed
        self.artifact = ""
        self.started: wire.Started | None = None
        self.cpu_s = 0.0
        self.contexts: list[ContextSamples] = []
        self._begin(0, wire.Opened(open_s=0.0, state_bytes=0, prefill_pass=1))

    def begin(self, context: int) -> None:
        """Receive the answer to `open` and collect samples at this context."""
        self._begin(context, self.worker.receive(wire.Open))

    def _begin(self, context: int, opened: wire.Opened) -> None:
        self.context, self.opened = context, opened
        self.ttft_ms: list[float] = []
        self.prefill_pass_ms: list[tuple[int, float]] = []
        self.decode_ms: list[tuple[float, ...]] = []
        self.decode_joules: list[tuple[int, float]] = []
        self.finite: bool | None = True

    def _see(self, finite: bool | None) -> None:
        """Logits of one more answer; what no answer showed stays unknown."""
        self.finite = None if finite is None or self.finite is None else self.finite and finite

    def prefill(self, num_tokens: int, *, fresh: bool = True) -> float:
        """Milliseconds of one prefill."""
        answer = self.worker.ask(wire.Prefill(ids=self._ids(num_tokens, self.seed), fresh=fresh))
        self._see(answer.finite)
        return answer.ms

    def pass_ms(self, depth: int) -> float:
        """Milliseconds of one prefill pass after `depth` tokens."""
        self.worker.ask(wire.Fill(num_tokens=depth, seed=self.seed))
        return self.prefill(self.prefill_pass_tokens, fresh=False)

    @property
    def prefill_pass_tokens(self) -> int:
        """Tokens that the engine takes in at once."""
        return self.opened.prefill_pass

    @property
    def plans_by_shape(self) -> bool:
        """Each shape of prefill must run once before it is timed."""
        return self.opened.plans_by_shape

    @property
    def depths(self) -> list[int]:
        """Where passes are timed: evenly from the start to where the last pass begins."""
        deepest = self.context - self.prefill_pass_tokens
        return [deepest * index // (_PASS_DEPTHS - 1) for index in range(_PASS_DEPTHS)]

    def decode(self, untimed: int, timed: int) -> None:
        """One group of decode steps; it is kept if any of them is timed.

        Raises:
            WorkerError: the answer has another number of times than steps were to be timed.
        """
        # Another seed for each group: the tokens differ between groups, not between subjects.
        ids = self._ids(untimed + timed, self.seed + len(self.decode_ms))
        before = self.energy()
        answer = self.worker.ask(wire.Decode(ids=ids, untimed=untimed))
        joules = spent(before, self.energy())
        if len(answer.ms) != timed:
            detail = f"{len(answer.ms)} times were answered where {timed} steps were to be timed"
            raise WorkerError("crash", detail, self.worker.role)
        self._see(answer.finite)
        if timed:
            self.decode_ms.append(answer.ms)
            if joules is not None:
                self.decode_joules.append((len(ids), joules))

    def end(self) -> None:
        """Read the peak and close this context's samples."""
        assert self.started is not None
        answer = self.worker.ask(wire.ReadMemory())
        self.cpu_s = answer.cpu_s - self.started.cpu_s
        self.contexts.append(
            ContextSamples(
                context=self.context,
                open_s=self.opened.open_s,
                state_bytes=self.opened.state_bytes,
                ttft_ms=tuple(self.ttft_ms),
                prefill_pass_ms=tuple(self.prefill_pass_ms),
                prefill_pass_tokens=self.prefill_pass_tokens,
                decode_ms=tuple(self.decode_ms),
                decode_joules=tuple(self.decode_joules),
                memory=answer.memory,
                finite=self.finite,
            )
        )

    def samples(self) -> ProcessSamples:
        """Everything taken from this process."""
        assert self.started is not None
        return ProcessSamples(
            engine_empty=self.started.memory,
            can_reset_peak=self.started.can_reset_peak,
            contexts=tuple(self.contexts),
        )

    def _ids(self, count: int, seed: int) -> tuple[int, ...]:
        return tuple(np.random.default_rng(seed).integers(self.vocab_size, size=count).tolist())


def start(subjects: list[Subject], threads: int) -> None:
    """Ask all workers to load their engine; `wait_started` waits for them."""
    for subject in subjects:
        subject.worker.send(wire.Start(threads=threads))


def wait_started(subjects: list[Subject]) -> None:
    """Wait until every engine is loaded, with nothing in it."""
    for subject in subjects:
        subject.started = subject.worker.receive(wire.Start)


def foreseen_work(context: int, config: ProfileConfig) -> tuple[float, float]:
    """How much the prefills and the decode steps of a context are, in tokens of a prompt."""
    return float(config.prefill_repeats * context), float(_STEP_TOKENS * config.room)


def measure_context(
    subjects: list[Subject],
    context: int,
    config: ProfileConfig,
    first: int,
    told: Callable[[float], None] = lambda share: None,
) -> None:
    """All samples of one context from each subject.

    Args:
        subjects: measured in turns.
        context: tokens of the prompt.
        config: how often.
        first: who begins.
        told: called with the share of this context that is done, as far as it can be foreseen.
    """
    prefills, decodes = foreseen_work(context, config)
    whole = prefills + decodes
    for subject in subjects:
        max_context = context + config.room
        subject.worker.send(wire.Open(directory=subject.artifact, max_context=max_context))
    for subject in subjects:
        subject.begin(context)
    turns = _orders(subjects, first)
    _fill(subjects, context)
    takes_whole = any(context <= subject.prefill_pass_tokens for subject in subjects)
    if takes_whole or context <= config.full_prefill_tokens:
        _full_prefills(turns, context, config)
    else:
        _prefill_passes(turns, config)
    told(prefills / whole)
    _fill(subjects, context)
    for subject in next(turns):
        subject.decode(config.warmup_steps, 0)
    for number, steps in enumerate(config.step_groups, 1):
        for subject in next(turns):
            subject.decode(config.settle_steps, steps)
        told((prefills + decodes * number / len(config.step_groups)) / whole)
    for subject in subjects:
        subject.end()


def _full_prefills(turns: Iterator[list[Subject]], context: int, config: ProfileConfig) -> None:
    for subject in next(turns):
        subject.prefill(context if subject.plans_by_shape else min(context, _WARM_TOKENS))
    for _ in range(config.prefill_repeats):
        for subject in next(turns):
            subject.ttft_ms.append(subject.prefill(context))


def _prefill_passes(turns: Iterator[list[Subject]], config: ProfileConfig) -> None:
    for subject in next(turns):
        for depth in subject.depths if subject.plans_by_shape else (0,):
            subject.pass_ms(depth)
    for _ in range(config.prefill_repeats):
        for index in range(_PASS_DEPTHS):
            for subject in next(turns):
                depth = subject.depths[index]
                subject.prefill_pass_ms.append((depth, subject.pass_ms(depth)))


def _fill(subjects: list[Subject], num_tokens: int) -> None:
    for subject in subjects:
        subject.worker.send(wire.Fill(num_tokens=num_tokens, seed=subject.seed))
    for subject in subjects:
        subject.worker.receive(wire.Fill)


def _orders(subjects: list[Subject], first: int) -> Iterator[list[Subject]]:
    """The subjects in turns, each time in the opposite order."""
    order = subjects if first % 2 == 0 else subjects[::-1]
    while True:
        yield order
        order = order[::-1]
