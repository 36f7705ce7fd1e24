"""The measuring worker: one process, one engine, one model; runs on the device.

``python -m archloop.profiling.worker`` reads one JSON object a line from standard input,
``{"command": NAME, ...}``, and answers each with one line, ``{"ok": {...}}`` or
``{"error": {"kind": ..., "detail": ...}}``. The parent asks in turns, so that blocks of two workers
interleave and never run at once. The worker ends when its input closes, whatever it is doing.
"""

import ctypes
import gc
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from archloop import registry
from archloop.errors import UserError
from archloop.profiling import memory
from archloop.runtimes.base import Runtime, Session, build_random
from archloop.stack.spec import StackSpec
from archloop.workers.victim import prefer_as_victim

_ALARM_GRACE_S = 5
_MEMORY_WORDS = ("allocate memory", "bad_alloc", "out of memory", "cannot allocate")
"""How engines say that memory ran out when they do not raise MemoryError."""

Answer = dict[str, Any]


class Worker:
    """Holds the engine and the session between commands; each method is a command."""

    def __init__(self) -> None:
        self.runtime: Runtime | None = None
        self.session: Session | None = None
        self.threads = 1
        self.time_limit_s = 0.0

    @property
    def commands(self) -> dict[str, Callable[..., Answer]]:
        """By name, the methods that a parent may ask for."""
        named = (self.start, self.export, self.open, self.fill, self.prefill, self.decode)
        return {method.__name__: method for method in (*named, self.memory, self.close)}

    def start(
        self,
        runtime: str,
        threads: int,
        plugins: list[str],
        memory_limit_bytes: int | None,
        time_limit_s: float,
    ) -> Answer:
        """Load the engine with nothing in it; answers its memory."""
        self.time_limit_s, self.threads = time_limit_s, threads
        for folder in plugins:
            registry.add_folder(Path(folder))
        if memory_limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, memory_limit_bytes))
        self.runtime = registry.get("runtimes", runtime)()
        self.runtime.start(threads)
        gc.collect()
        # What an engine's import leaves stays for good; without this every collection before a
        # timed block walks all of it, which takes longer than the block.
        gc.freeze()
        can_reset = self._reset_peak()
        return {
            "baseline": self._read_memory(),
            "can_reset_peak": can_reset,
            "cpu_s": time.process_time(),
        }

    def export(self, spec: dict[str, Any], seed: int, quant: str, directory: str) -> Answer:
        """Export a decoder with random weights."""
        assert self.runtime is not None
        decoder = build_random(StackSpec.model_validate(spec), seed)
        manifest = self.runtime.export(decoder, Path(directory), quant)
        return {"manifest": manifest.model_dump(mode="json")}

    def open(self, directory: str, max_context: int) -> Answer:
        """Load an artifact in place of the one before."""
        assert self.runtime is not None
        self.close()
        self._reset_peak()
        start = time.perf_counter()
        self.session = self.runtime.open(Path(directory), self.threads, max_context)
        seconds = time.perf_counter() - start
        return {
            "open_s": seconds,
            "state_bytes": self.session.state_bytes,
            "prefill_chunk": self.session.prefill_chunk,
            "plans_by_shape": self.session.plans_by_shape,
        }

    def fill(self, num_tokens: int, seed: int) -> Answer:
        """Stand at a depth with every page of the state written."""
        self._session.fill(num_tokens, seed)
        return {}

    def prefill(self, num_tokens: int, seed: int, vocab_size: int, fresh: bool) -> Answer:
        """Take in a random prompt, from the start or from where the state stands, and sample."""
        ids = np.random.default_rng(seed).integers(vocab_size, size=num_tokens).tolist()
        session = self._session
        if fresh:
            session.reset()
        with _no_collection():
            start = time.perf_counter_ns()
            logits = session.prefill(ids)
            int(np.argmax(logits))
            elapsed = time.perf_counter_ns() - start
        return {"ms": elapsed / 1e6, "finite": bool(np.isfinite(logits).all())}

    def decode(self, untimed: int, timed: int, seed: int, vocab_size: int) -> Answer:
        """Decode steps, each with greedy sampling; answers the time of each timed one.

        The tokens are random and not the sampled ones: random weights soon repeat themselves, and
        then a mixture of experts would read the same few experts from cache.
        """
        ids = np.random.default_rng(seed).integers(vocab_size, size=untimed + timed).tolist()
        step, clock, times = self._session.decode_step, time.perf_counter_ns, []
        with _no_collection():
            for token in ids:
                start = clock()
                logits = step(token)
                int(np.argmax(logits))
                times.append(clock() - start)
        milliseconds = [elapsed / 1e6 for elapsed in times[untimed:]]
        return {"ms": milliseconds, "finite": bool(np.isfinite(logits).all())}

    def memory(self) -> Answer:
        """Peak since the model was opened, what is resident now, and processor time so far."""
        return {"memory": self._read_memory(), "cpu_s": time.process_time()}

    def close(self) -> Answer:
        """Free the model."""
        if self.session is not None:
            self.session.close()
            self.session = None
            gc.collect()
            _trim_heap()
        return {}

    def _read_memory(self) -> dict[str, int | None]:
        """Of this process, and the peak of the engine's device if that has memory of its own."""
        assert self.runtime is not None
        return memory.read() | {"device_peak_bytes": self.runtime.device_peak_bytes()}

    def _reset_peak(self) -> bool:
        """Start both peaks anew; False where the one that counts cannot be."""
        assert self.runtime is not None
        self.runtime.reset_device_peak()
        return memory.reset_peak() or self.runtime.device_peak_bytes() is not None

    @property
    def _session(self) -> Session:
        assert self.session is not None, "open an artifact first"
        return self.session

    def answer(self, request: dict[str, Any]) -> Answer:
        """Carry out one request under the time limit; errors become answers."""
        command = request.pop("command")
        try:
            if self.time_limit_s:
                # No handler: the kernel ends the process even if it hangs in native code.
                signal.alarm(int(self.time_limit_s) + _ALARM_GRACE_S)
            return {"ok": self.commands[command](**request)}
        except Exception as error:
            traceback.print_exc()
            return {"error": {"kind": _kind(error), "detail": f"{command}: {_one_line(error)}"}}
        finally:
            signal.alarm(0)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python's garbage collector out of timed code."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _kind(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(word in text for word in _MEMORY_WORDS):
        return "memory"
    return "unsupported" if isinstance(error, UserError) else "crash"


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _trim_heap() -> None:
    """Give freed memory back to the system, so that the next context starts without it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _read_requests(stream: BinaryIO, requests: "queue.Queue[dict[str, Any]]") -> None:
    for line in stream:
        requests.put(json.loads(line))
    # The parent is gone or done: nobody will read an answer.
    os._exit(0)


def main() -> None:
    """Serve requests until the input closes."""
    # Engines print; their prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    prefer_as_victim()
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    reader = threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests), daemon=True)
    reader.start()
    worker = Worker()
    while True:
        answers.write(json.dumps(worker.answer(requests.get())).encode() + b"\n")


if __name__ == "__main__":
    main()
