"""The one table of deaths: local signals, a shell's statuses, lost devices, what a worker says."""

import errno
import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from archloop.devices.host import Host
from archloop.errors import UserError
from archloop.workers import wire
from archloop.workers.deaths import WorkerError, cause_of, of_status
from archloop.workers.messages import VERSION, Hello
from archloop.workers.process import WorkerProcess

SEGV, KILL, ALRM = (int(getattr(signal, name)) for name in ("SIGSEGV", "SIGKILL", "SIGALRM"))


@pytest.mark.parametrize(
    ("status", "last_line", "ran_out", "cause", "words"),
    [
        (-SEGV, "", False, "crash", "signal SIGSEGV; no message"),
        (128 + SEGV, "boom", False, "crash", "signal SIGSEGV; boom"),
        (-KILL, "", True, "memory", "killed because memory ran out"),
        (128 + KILL, "", True, "memory", "killed because memory ran out"),
        (-KILL, "", False, "crash", "signal SIGKILL"),
        (-ALRM, "", False, "timeout", "SIGALRM"),
        (128 + ALRM, "", False, "timeout", "SIGALRM"),
        (1, "ValueError: no such thing", False, "crash", "exit status 1; ValueError: no such"),
        (1, "MemoryError: all gone", False, "memory", "all gone"),
        (134, "terminate called: std::bad_alloc", False, "crash", "signal SIGABRT"),
        (1, "tar: model: Cannot write: No space left on device", False, "disk", "No space left"),
        (0, "", False, "crash", "exit status 0; no message"),
        (255, "", True, "crash", "exit status 255"),
    ],
)
def test_an_exit_is_read_rightly(
    status: int, last_line: str, ran_out: bool, cause: str, words: str
) -> None:
    found, detail = of_status(status, last_line, memory_ran_out=ran_out)
    assert found == cause
    assert words in detail


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EACCES, "Permission denied"), "crash"),
        (UserError("no such stack"), "unsupported"),
        (ValueError("shapes do not match"), "crash"),
    ],
)
def test_what_a_worker_lives_to_report(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


class _Lost(Host):
    """A device whose connection breaks: its client ends with 255, as ssh does."""

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return super().run(["sh", "-c", "read x; exit 255"], env=env, stderr=stderr)

    def is_gone(self, status: int, last_line: str) -> bool:
        return status == 255


def test_a_lost_device_is_no_crash_of_the_candidate(tmp_path: Path) -> None:
    worker = WorkerProcess(_Lost(), [], tmp_path / "log", threads=1, time_limit_s=20)
    try:
        with pytest.raises(WorkerError, match="cannot be reached any more") as caught:
            worker.ask(Hello(time_limit_s=1))
    finally:
        worker.kill()
    assert caught.value.cause == "gone"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"wire": 99, "abi": "x"}, "it speaks version 99 of the wire protocol"),
        ({"wire": VERSION, "abi": "x", "archloop": "0.0.0"}, "archloop 0.0.0 is there"),
        ({"wire": VERSION, "abi": "x", "missing": "a chip; buy one"}, "a chip; buy one"),
        ({"wire": VERSION}, "no answer to Hello"),
    ],
)
def test_two_sides_that_do_not_fit_part_at_once(
    answer: dict[str, object], words: str, tmp_path: Path
) -> None:
    program = f"read x; echo '{json.dumps({'ok': answer})}'; read x"
    worker = WorkerProcess(
        Host(), ["sh", "-c", program], tmp_path / "log", threads=1, time_limit_s=20
    )
    try:
        with pytest.raises(WorkerError, match=words) as caught:
            worker.hello(runtime="any")
    finally:
        worker.kill()
    assert caught.value.cause == ("crash" if "abi" not in answer else "missing")


def test_a_worker_that_takes_nothing_in_is_given_up_in_time(tmp_path: Path) -> None:
    hello = json.dumps({"ok": {"wire": VERSION, "abi": "x"}})
    program = f"read x; echo '{hello}'; exec sleep 60"
    worker = WorkerProcess(
        Host(), ["sh", "-c", program], tmp_path / "log", threads=1, time_limit_s=1.5
    )
    try:
        worker.hello()
        with pytest.raises(
            WorkerError, match=r"no answer within the time limit of 1\.5 s"
        ) as caught:
            # More than a pipe holds.
            worker.ask(wire.Prefill(ids=(1,) * 200_000, fresh=True))
    finally:
        worker.kill()
    assert caught.value.cause == "timeout"
