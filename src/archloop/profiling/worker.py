"""archloop's own runner: one process, one engine, one model; runs on the device.

``python -m archloop.profiling.worker`` answers the commands of `workers.wire` for every runtime
whose sessions are Python objects. The study asks in turns, so that decode steps of two workers
interleave and never run at once.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from archloop import registry
from archloop.profiling import memory
from archloop.profiling.measuring import Measuring
from archloop.runtimes.base import Runtime, Session
from archloop.workers import heap, wire
from archloop.workers.messages import Done
from archloop.workers.serve import Engine


class Worker(Measuring):
    """Holds the engine and the session between commands; each method answers one."""

    def __init__(self) -> None:
        self.runtime: Runtime | None = None
        self.session: Session | None = None
        self.threads = 1

    def engine(self, name: str) -> Engine:
        """The runtime that `start` will load; it is not loaded yet."""
        self.runtime = registry.get("runtimes", name)()
        missing = self.runtime.missing_to_run()
        return Engine(f"{name} {self.runtime.version()}" if missing is None else name, missing)

    def start(self, asked: wire.Start) -> wire.Started:
        """Load the engine with nothing in it; answers its memory."""
        self.threads = asked.threads
        self._engine.start(asked.threads)
        gc.collect()
        # What an engine's import leaves stays for good; without this every collection before a
        # timed block walks all of it, which takes longer than the block.
        gc.freeze()
        can_reset = self._reset_peak()
        return wire.Started(
            memory=self._read_memory(), can_reset_peak=can_reset, cpu_s=time.process_time()
        )

    def open(self, asked: wire.Open) -> wire.Opened:
        """Load an artifact in place of the one before."""
        self.close(wire.Close())
        self._reset_peak()
        start = time.perf_counter()
        self.session = self._engine.open(Path(asked.directory), self.threads, asked.max_context)
        return wire.Opened(
            open_s=time.perf_counter() - start,
            state_bytes=self.session.state_bytes,
            prefill_pass=self.session.prefill_pass,
            plans_by_shape=self.session.plans_by_shape,
        )

    def fill(self, asked: wire.Fill) -> Done:
        """Stand at a depth with every page of the state written."""
        self._session.fill(asked.num_tokens, asked.seed)
        return Done()

    def prefill(self, asked: wire.Prefill) -> wire.Prefilled:
        """Take in a prompt, from the start or from where the state stands, and choose a token."""
        session = self._session
        prompt = session.prepare(asked.ids)
        if asked.fresh:
            session.reset()
        with _no_collection():
            start = time.perf_counter_ns()
            session.prefill(prompt)
            elapsed = time.perf_counter_ns() - start
        return wire.Prefilled(ms=elapsed / 1e6, finite=self._is_finite())

    def decode(self, asked: wire.Decode) -> wire.Decoded:
        """Decode steps; answers the time of each timed one."""
        step, clock, times = self._session.decode_step, time.perf_counter_ns, []
        with _no_collection():
            for token in asked.ids:
                start = clock()
                step(token)
                times.append(clock() - start)
        milliseconds = tuple(elapsed / 1e6 for elapsed in times[asked.untimed :])
        return wire.Decoded(ms=milliseconds, finite=self._is_finite())

    def logits(self, asked: wire.Logits) -> wire.LogitRows:
        """Logits of given tokens, from an empty state."""
        from archloop.runtimes.parity import encoded, session_rows

        return wire.LogitRows(rows=encoded(session_rows(self._session, asked.parts, asked.steps)))

    def memory(self, asked: wire.ReadMemory) -> wire.Reading:
        """Peak since the model was opened, what is resident now, and processor time so far."""
        del asked
        return wire.Reading(memory=self._read_memory(), cpu_s=time.process_time())

    def close(self, asked: wire.Close) -> Done:
        """Free the model."""
        del asked
        if self.session is not None:
            self.session.close()
            self.session = None
            heap.free()
        return Done()

    def _read_memory(self) -> wire.Memory:
        """Of this process, and the peak of the engine's device if that has memory of its own."""
        device_peak = self._engine.device_peak_bytes()
        return wire.Memory(**memory.read(), device_peak_bytes=device_peak)

    def _reset_peak(self) -> bool:
        """Start both peaks anew; False where the one that counts cannot be."""
        self._engine.reset_device_peak()
        return memory.reset_peak() or self._engine.device_peak_bytes() is not None

    def _is_finite(self) -> bool:
        return bool(np.isfinite(self._session.logits()).all())

    @property
    def _engine(self) -> Runtime:
        assert self.runtime is not None, "say hello with a runtime first"
        return self.runtime

    @property
    def _session(self) -> Session:
        assert self.session is not None, "open an artifact first"
        return self.session


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python's garbage collector out of timed code."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def main() -> None:
    """Serve until the input closes."""
    Worker().serve()


if __name__ == "__main__":
    main()
