"""The study's side: start a worker on a device, ask, wait no longer than allowed, tell why it died.

Measuring, exporting and training are all asked this way; they differ in the program that is started
and in the messages it understands.
"""

import json
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from archloop.devices.base import Device
from archloop.version import __version__
from archloop.workers import cancelling
from archloop.workers.deaths import Role, WorkerError, of_status
from archloop.workers.forking import Start
from archloop.workers.messages import VERSION, Failure, Hello, HelloAnswer, Message, Request

A = TypeVar("A", bound=Message)

_TAIL_BYTES = 2000


class WorkerProcess:
    """A worker on a device. `send` then `receive`, or `ask` for both; `kill` when done.

    Only the time spent waiting for this worker counts towards its limit, not its partner's turns.

    Args:
        device: where it runs.
        argv: program and arguments, as the device knows them.
        log: file that gets its standard error; removed at the end if it stayed empty.
        threads: for libraries that read them from the environment.
        time_limit_s: for all answers together.
        role: whose process it is, in messages.
        env: more of its environment.
        run: starts the process, as `Device.run` does, which is the default.

    Attributes:
        log_start: byte of the log at which the present work began.
    """

    def __init__(
        self,
        device: Device,
        argv: Sequence[str],
        log: Path,
        *,
        threads: int,
        time_limit_s: float,
        role: Role = "worker",
        env: Mapping[str, str] | None = None,
        run: Start | None = None,
    ) -> None:
        self.role: Role = role
        self.log = log
        self.log_start = 0
        self.time_left_s = time_limit_s
        self.time_limit_s = time_limit_s
        self._device = device
        self._kills_before = device.readings().oom_kills
        self._buffer = b""
        self._asked: list[type[Request[Any]]] = []
        # The last is of PyTorch's compiler, which else starts a process for each core.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
        counts = dict.fromkeys(names, str(threads))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            start = device.run if run is None else run
            self.process = start(argv, env={**counts, **(env or {})}, stderr=stderr)

    def hello(
        self,
        *,
        runtime: str | None = None,
        plugins: Sequence[str] = (),
        memory_limit_bytes: int | None = None,
    ) -> HelloAnswer:
        """Agree on the protocol, and say what the worker may use.

        Raises:
            WorkerError: as `receive`; the worker speaks another version or is of another archloop,
                or the device lacks something that the runtime needs.
        """
        told = self.ask(
            Hello(
                runtime=runtime,
                plugins=tuple(plugins),
                memory_limit_bytes=memory_limit_bytes,
                time_limit_s=self.time_limit_s,
            )
        )
        if told.wire != VERSION:
            detail = f"it speaks version {told.wire} of the wire protocol, archloop {VERSION}"
            raise WorkerError("missing", f"{detail}; install equal versions", self.role)
        if told.archloop not in (None, __version__):
            detail = f"archloop {told.archloop} is there and {__version__} here"
            raise WorkerError("missing", f"{detail}; install equal versions", self.role)
        if told.missing is not None:
            raise WorkerError("missing", told.missing, self.role)
        return told

    def begin(self) -> None:
        """Begin new work: the whole time limit, and nothing that came of the work before."""
        assert not self._asked, "an answer is still expected"
        self.time_left_s = self.time_limit_s
        self._kills_before = self._device.readings().oom_kills
        self.log_start = self.log.stat().st_size

    def send(self, request: Request[Any]) -> None:
        """Put a request; the worker starts on it at once.

        Raises:
            WorkerError: the worker died, or took nothing in for as long as it had time.
        """
        self._asked.append(type(request))
        start = time.monotonic()
        try:
            self._write(request.model_dump_json().encode() + b"\n")
        except BrokenPipeError:
            raise self._died() from None
        finally:
            self.time_left_s -= time.monotonic() - start

    def receive(self, request: type[Request[A]]) -> A:
        """Wait for the answer to the oldest request, which was such a request.

        Raises:
            WorkerError: the worker died, ran out of time or memory, its engine refused, or what it
                answered is no answer.
        """
        asked = self._asked.pop(0)
        assert asked is request, f"{asked.__name__} was asked, not {request.__name__}"
        start = time.monotonic()
        try:
            line = self._line()
        finally:
            self.time_left_s -= time.monotonic() - start
        try:
            answer = json.loads(line)
            if "error" in answer:
                failure = Failure.model_validate(answer["error"])
                raise WorkerError(failure.cause, failure.detail, self.role)
            return request.answer_type().model_validate(answer["ok"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            what = " ".join(str(error).split())[:200]
            detail = f"no answer to {request.__name__} but {line[:80]!r} ({what})"
            raise WorkerError("crash", detail, self.role) from error

    def ask(self, request: Request[A]) -> A:
        """`send` and `receive`."""
        self.send(request)
        return self.receive(type(request))

    def kill(self) -> None:
        """End the worker and whatever it started; the log stays only if it says something."""
        if self.process.poll() is None:
            # Only while the process has not been waited for: afterwards the system may give its
            # number to another process. One that was forked may end between the two lines.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        if self.log.exists() and not self.log.stat().st_size:
            self.log.unlink()

    def _write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        descriptor = self.process.stdin.fileno()
        deadline = time.monotonic() + self.time_left_s
        rest = memoryview(line)
        while rest:
            # Of a pipe that has room, the system takes so many bytes without waiting. More of them
            # would wait for ever for a worker that hangs, or that a dead line leads to.
            if self._is_ready([], [descriptor], deadline):
                rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + self.time_left_s
        while b"\n" not in self._buffer:
            if not self._is_ready([descriptor], [], deadline):
                continue
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise self._died()
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _is_ready(self, to_read: list[int], to_write: list[int], deadline: float) -> bool:
        """Wait a moment; whether one of these pipes can be read or written by then.

        Raises:
            WorkerError: the deadline is over.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._timed_out()
        cancelling.check()
        return any(select.select(to_read, to_write, [], min(left, cancelling.POLL_S)))

    def _timed_out(self) -> WorkerError:
        detail = f"no answer within the time limit of {self.time_limit_s:g} s"
        return WorkerError("timeout", detail, self.role)

    def _died(self) -> WorkerError:
        status, last_line = self.process.wait(), self._last_line()
        if self._device.is_gone(status, last_line):
            where = f"device {self._device.name} cannot be reached any more"
            return WorkerError("gone", f"{where}; {last_line}" if last_line else where, self.role)
        cause, detail = of_status(status, last_line, memory_ran_out=self._memory_ran_out())
        return self._timed_out() if cause == "timeout" else WorkerError(cause, detail, self.role)

    def _memory_ran_out(self) -> bool:
        """Whether the device counted an out-of-memory kill meanwhile; if it cannot say, likely."""
        kills = self._device.readings().oom_kills
        if kills is None or self._kills_before is None:
            return True
        return kills > self._kills_before

    def _last_line(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(self.log_start, self.log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
