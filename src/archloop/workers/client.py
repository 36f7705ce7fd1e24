"""The parent's side of a measuring worker: ask, wait no longer than allowed, tell how it died."""

import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any, Literal

from archloop.devices.base import Device

Kind = Literal["crash", "timeout", "memory", "unsupported"]
Role = Literal["candidate", "reference"]

_TAIL_BYTES = 2000


class MeasurementError(Exception):
    """A measurement that could not be made.

    Attributes:
        kind: the process crashed, took too long, ran out of memory, or its engine refused.
        detail: one line.
        role: whose process it was.
    """

    def __init__(self, kind: Kind, detail: str, role: Role = "candidate") -> None:
        super().__init__(f"{role}: {kind}: {detail}")
        self.kind, self.detail, self.role = kind, detail, role


class WorkerProcess:
    """A worker on a device. `send` then `receive`, or `ask` for both; `kill` when done.

    Only the time spent waiting for this worker counts towards its limit, not its partner's turns.
    """

    def __init__(
        self, device: Device, role: Role, log: Path, *, threads: int, time_limit_s: float
    ) -> None:
        self.role: Role = role
        self.log = log
        self.time_left_s = time_limit_s
        self.time_limit_s = time_limit_s
        self._device = device
        self._kills_before = device.readings().oom_kills
        self._buffer = b""
        env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            self.process = device.run(device.worker_argv(), env=env, stderr=stderr)

    def send(self, command: str, **arguments: Any) -> None:
        """Put a request; the worker starts on it at once."""
        line = json.dumps({"command": command, **arguments}).encode() + b"\n"
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
        except BrokenPipeError:
            raise self._died() from None

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to the oldest request.

        Raises:
            MeasurementError: the worker died, ran out of time or memory, or its engine refused.
        """
        start = time.monotonic()
        try:
            answer = json.loads(self._line())
        finally:
            self.time_left_s -= time.monotonic() - start
        if "error" in answer:
            raise MeasurementError(answer["error"]["kind"], answer["error"]["detail"], self.role)
        found: dict[str, Any] = answer["ok"]
        return found

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """`send` and `receive`."""
        self.send(command, **arguments)
        return self.receive()

    def kill(self) -> None:
        """End the worker and whatever it started; the log stays only if it says something."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        if self.log.exists() and not self.log.stat().st_size:
            self.log.unlink()

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + self.time_left_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise self._timed_out()
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise self._died()
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _timed_out(self) -> MeasurementError:
        detail = f"no answer within the time limit of {self.time_limit_s:g} s"
        return MeasurementError("timeout", detail, self.role)

    def _died(self) -> MeasurementError:
        code = self.process.wait()
        if code == -signal.SIGALRM:
            return self._timed_out()
        if code == -signal.SIGKILL and self._memory_ran_out():
            return MeasurementError("memory", "killed because memory ran out", self.role)
        how = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        last = self._last_line()
        return MeasurementError("crash", f"{how}; {last}" if last else how, self.role)

    def _memory_ran_out(self) -> bool:
        """Whether the device counted an out-of-memory kill meanwhile; if it cannot say, likely."""
        kills = self._device.readings().oom_kills
        if kills is None or self._kills_before is None:
            return True
        return kills > self._kills_before

    def _last_line(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
