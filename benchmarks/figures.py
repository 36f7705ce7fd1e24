"""The figures of a run that may fail or take too long: those that it yields before its end.

On a CPU a run has a process of its own, forked from one that has done nothing but import, so that
what another run left behind in the allocator does not count in its memory. It may take most of what
is free now; past that it gets an error, not the machine's out-of-memory killer.
"""

import gc
import multiprocessing
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Figures = Iterator[tuple[str, float]]

FREE_SHARE = 0.8
GIB = 2**20
"""KiB."""


def in_own_process(run: Callable[..., Figures], *args: Any, limit_s: float) -> dict[str, Any]:
    """The figures that `run` yields in a child; `stopped` says why there are no more of them."""
    context = multiprocessing.get_context("forkserver")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(send, run, args))
    child.start()
    send.close()
    found: dict[str, Any] = {}
    end = time.monotonic() + limit_s
    try:
        while receive.poll(max(0.0, end - time.monotonic())):
            figure = receive.recv()
            if figure is None:  # the end
                return found
            found.update([figure])
        found["stopped"] = f"stopped after {limit_s:g} s"
    except EOFError:
        found["stopped"] = "its process was killed"
    finally:
        child.kill()
        child.join()
    return found


def _report(send: Connection, run: Callable[..., Figures], args: tuple[Any, ...]) -> None:
    free = kib("/proc/meminfo", "MemAvailable")
    if free is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(FREE_SHARE * free * 1024),) * 2)
    try:
        for figure in run(*args):
            send.send(figure)
    except Exception as error:
        send.send(("stopped", reason(error)))
    send.send(None)


def here(run: Callable[..., Figures], *args: Any, limit_s: float = 0.0) -> dict[str, Any]:
    """`in_own_process` in this one, with its compiled kernels; no time limit where that is 0.

    A call of PyTorch that is under way when the time is over is waited for.
    """
    found: dict[str, Any] = {}

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        for figure in run(*args):
            found.update([figure])
    except Exception as error:
        traceback.print_exc()
        found["stopped"] = reason(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    torch.cuda.empty_cache()
    return found


def reason(error: Exception) -> str:
    """In one line."""
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:200]


class PeakMemory:
    """The most resident memory since this was made, without mapped files such as libraries."""

    def __init__(self) -> None:
        self.before = kib("/proc/self/status", "RssAnon")

    def gib(self) -> float | None:
        """None where there is no /proc."""
        peak, files = (kib("/proc/self/status", field) for field in ("VmHWM", "RssFile"))
        if self.before is None or peak is None or files is None:
            return None
        return (peak - files - self.before) / GIB


def kib(file: str, field: str) -> int | None:
    if not Path(file).exists():
        return None
    lines = (line.split() for line in Path(file).read_text().splitlines())
    return next((int(words[1]) for words in lines if words and words[0] == f"{field}:"), None)
