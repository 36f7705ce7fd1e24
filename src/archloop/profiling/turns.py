"""One process of the candidate and one of the reference, measured in turns, never at once.

The two start together (loading an engine takes seconds and disturbs nothing yet), then alternate:
a prefill each, a block of decode steps each, and who goes first alternates too. What drifts
meanwhile, such as the clock or a neighbour, meets both alike and leaves their ratio.
"""

from collections.abc import Iterator
from typing import Any

from archloop.profiling.config import ProfileConfig
from archloop.profiling.samples import ContextSamples, Memory, ProcessSamples
from archloop.workers.client import WorkerProcess

_CHUNK_DEPTHS = 5
_WARM_TOKENS = 128


class Subject:
    """An artifact in a worker of its own, and the samples taken from it so far."""

    def __init__(self, worker: WorkerProcess, vocab_size: int, seed: int) -> None:
        self.worker = worker
        self.vocab_size = vocab_size
        self.seed = seed
        self.artifact = ""
        self.started: dict[str, Any] = {}
        self.cpu_s = 0.0
        self.contexts: list[ContextSamples] = []
        self._begin(0, {})

    def begin(self, context: int) -> None:
        """Receive the answer to `open` and collect samples at this context."""
        self._begin(context, self.worker.receive())

    def _begin(self, context: int, opened: dict[str, Any]) -> None:
        self.context, self.opened = context, opened
        self.ttft_ms: list[float] = []
        self.chunk_ms: list[tuple[int, float]] = []
        self.decode_ms: list[tuple[float, ...]] = []
        self.finite = True

    def prefill(self, num_tokens: int, *, fresh: bool = True) -> float:
        """Milliseconds of one prefill."""
        answer = self.worker.ask(
            "prefill",
            num_tokens=num_tokens,
            seed=self.seed,
            vocab_size=self.vocab_size,
            fresh=fresh,
        )
        self.finite &= answer["finite"]
        milliseconds: float = answer["ms"]
        return milliseconds

    def chunk(self, depth: int) -> float:
        """Milliseconds of one prefill chunk after `depth` tokens."""
        self.worker.ask("fill", num_tokens=depth, seed=self.seed)
        return self.prefill(self.chunk_tokens, fresh=False)

    @property
    def chunk_tokens(self) -> int:
        """Tokens that the engine takes in at once."""
        tokens: int = self.opened["prefill_chunk"]
        return tokens

    @property
    def plans_by_shape(self) -> bool:
        """Each shape of prefill must run once before it is timed."""
        plans: bool = self.opened["plans_by_shape"]
        return plans

    @property
    def depths(self) -> list[int]:
        """Where chunks are timed: evenly from the start to where the last chunk begins."""
        deepest = self.context - self.chunk_tokens
        return [deepest * index // (_CHUNK_DEPTHS - 1) for index in range(_CHUNK_DEPTHS)]

    def decode(self, untimed: int, timed: int) -> None:
        """One block of decode steps; it is kept if any of them is timed."""
        # Another seed for each block: the tokens differ between blocks, not between subjects.
        answer = self.worker.ask(
            "decode",
            untimed=untimed,
            timed=timed,
            seed=self.seed + len(self.decode_ms),
            vocab_size=self.vocab_size,
        )
        self.finite &= answer["finite"]
        if timed:
            self.decode_ms.append(tuple(answer["ms"]))

    def end(self) -> None:
        """Read the peak and close this context's samples."""
        answer = self.worker.ask("memory")
        self.cpu_s = answer["cpu_s"] - self.started["cpu_s"]
        self.contexts.append(
            ContextSamples(
                context=self.context,
                open_s=self.opened["open_s"],
                state_bytes=self.opened["state_bytes"],
                ttft_ms=tuple(self.ttft_ms),
                chunk_ms=tuple(self.chunk_ms),
                chunk_tokens=self.chunk_tokens,
                decode_ms=tuple(self.decode_ms),
                memory=Memory(**answer["memory"]),
                finite=self.finite,
            )
        )

    def samples(self) -> ProcessSamples:
        """Everything taken from this process."""
        return ProcessSamples(
            baseline=Memory(**self.started["baseline"]),
            can_reset_peak=self.started["can_reset_peak"],
            contexts=tuple(self.contexts),
        )


def start(
    subjects: list[Subject], runtime: str, config: ProfileConfig, threads: int, plugins: list[str]
) -> None:
    """Ask all workers to load their engine; `wait_started` waits for them."""
    for subject in subjects:
        subject.worker.send(
            "start",
            runtime=runtime,
            threads=threads,
            plugins=plugins,
            memory_limit_bytes=config.memory_limit_bytes,
            time_limit_s=config.time_limit_s,
        )


def wait_started(subjects: list[Subject]) -> None:
    """Wait until every engine is loaded, with nothing in it."""
    for subject in subjects:
        subject.started = subject.worker.receive()


def measure_context(
    subjects: list[Subject], context: int, config: ProfileConfig, first: int
) -> None:
    """All samples of one context from each subject; `first` says who begins."""
    for subject in subjects:
        max_context = context + config.room
        subject.worker.send("open", directory=subject.artifact, max_context=max_context)
    for subject in subjects:
        subject.begin(context)
    turns = _orders(subjects, first)
    _fill(subjects, context)
    takes_whole = any(context <= subject.chunk_tokens for subject in subjects)
    if takes_whole or context <= config.full_prefill_tokens:
        _full_prefills(turns, context, config)
    else:
        _chunks(turns, config)
    _fill(subjects, context)
    for subject in next(turns):
        subject.decode(config.warmup_steps, 0)
    for steps in config.blocks:
        for subject in next(turns):
            subject.decode(config.settle_steps, steps)
    for subject in subjects:
        subject.end()


def _full_prefills(turns: Iterator[list[Subject]], context: int, config: ProfileConfig) -> None:
    for subject in next(turns):
        subject.prefill(context if subject.plans_by_shape else min(context, _WARM_TOKENS))
    for _ in range(config.prefill_repeats):
        for subject in next(turns):
            subject.ttft_ms.append(subject.prefill(context))


def _chunks(turns: Iterator[list[Subject]], config: ProfileConfig) -> None:
    for subject in next(turns):
        for depth in subject.depths if subject.plans_by_shape else (0,):
            subject.chunk(depth)
    for _ in range(config.prefill_repeats):
        for index in range(_CHUNK_DEPTHS):
            for subject in next(turns):
                depth = subject.depths[index]
                subject.chunk_ms.append((depth, subject.chunk(depth)))


def _fill(subjects: list[Subject], num_tokens: int) -> None:
    for subject in subjects:
        subject.worker.send("fill", num_tokens=num_tokens, seed=subject.seed)
    for subject in subjects:
        subject.worker.receive()


def _orders(subjects: list[Subject], first: int) -> Iterator[list[Subject]]:
    """The subjects in turns, each time in the opposite order."""
    order = subjects if first % 2 == 0 else subjects[::-1]
    while True:
        yield order
        order = order[::-1]
