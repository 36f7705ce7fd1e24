"""Workers forked from a server on this machine: the side that asks for them.

A forked worker is as fresh as a started one, but for what it shares with its siblings: the state
after the imports. It is killed, waited for and spoken to as a child process is.
"""

import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from archloop.devices.base import Device
from archloop.scratch import Scratch

READY_S = 300.0
"""Until a server must have imported everything."""
_KILLED = -9


class ForkError(RuntimeError):
    """No worker can be forked; the message says why. Start a process instead."""


class ForkedProcess:
    """A worker that the server forked, with the part of `subprocess.Popen` that callers use.

    Attributes:
        pid: of the worker, which leads a process group of its own.
        stdin: to the worker.
        stdout: from the worker.
    """

    def __init__(self, server: socket.socket, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._server = server
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout
        self._buffer = b""
        self._status: int | None = None
        self.pid = int(self._line().get("pid", 0))
        if not self.pid:
            raise ForkError("the server that forks workers ended")

    def poll(self) -> int | None:
        """How the worker ended, as `subprocess` tells it; None while it runs."""
        if self._status is None and select.select([self._server], [], [], 0)[0]:
            return self.wait()
        return self._status

    def wait(self) -> int:
        """Wait until the worker has ended, and tell how."""
        if self._status is None:
            # A server that was killed cannot tell, and took its workers' input with it.
            self._status = int(self._line().get("status", _KILLED))
            self._server.close()
        return self._status

    def _line(self) -> dict[str, int]:
        while b"\n" not in self._buffer:
            part = self._server.recv(4096)
            if not part:
                return {}
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        told: dict[str, int] = json.loads(line)
        return told


class ForkServer:
    """A running server.

    Args:
        device: this machine, by which the server is started.
        module: whose `main` is the worker.
        imports: modules that it needs.
        env: of server and workers.

    Raises:
        ForkError: what was imported cannot be forked, or the import failed.
    """

    def __init__(
        self, device: Device, module: str, imports: Sequence[str], env: Mapping[str, str]
    ) -> None:
        python = device.python_argv()
        if python is None or not hasattr(os, "pidfd_open"):
            raise ForkError("forking needs Linux and a Python on the device")
        self._folder = Scratch("fork")
        self._address = str(Path(self._folder.name) / "socket")
        argv = [*python, "-m", "archloop.workers.fork_server", self._address, module, *imports]
        with (Path(self._folder.name) / "log").open("wb") as log:
            self._process: subprocess.Popen[bytes] = device.run(argv, env=env, stderr=log)
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def fork(self, stderr: IO[bytes]) -> ForkedProcess:
        """A new worker.

        Args:
            stderr: gets its standard error.

        Raises:
            ForkError: the server is gone.
        """
        (child_in, to_child), (from_child, child_out) = os.pipe(), os.pipe()
        connection = socket.socket(socket.AF_UNIX)
        ours = os.fdopen(to_child, "wb", buffering=0), os.fdopen(from_child, "rb", buffering=0)
        try:
            connection.connect(self._address)
            socket.send_fds(connection, [b"f"], [child_in, child_out, stderr.fileno()])
            return ForkedProcess(connection, *ours)
        except (OSError, ForkError) as error:
            connection.close()
            for file in ours:
                file.close()
            raise ForkError(f"the server that forks workers is gone: {error}") from error
        finally:
            os.close(child_in)
            os.close(child_out)

    def close(self) -> None:
        """End the server; workers that still run end when their input closes."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._folder.cleanup()

    def _wait_ready(self) -> None:
        assert self._process.stdout is not None
        deadline, line = time.monotonic() + READY_S, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise ForkError(f"no server that forks workers within {READY_S:g} s")
            part = os.read(self._process.stdout.fileno(), 4096)
            if not part:
                log = (Path(self._folder.name) / "log").read_text(errors="replace").strip()
                last = log.splitlines()[-1] if log else "no message"
                raise ForkError(f"the server that forks workers ended: {last}")
            line += part
        try:
            told = json.loads(line)
        except ValueError as error:
            raise ForkError(f"the server that forks workers said {line[:80]!r}") from error
        if "cannot" in told:
            raise ForkError(str(told["cannot"]))


Start = Callable[..., "subprocess.Popen[bytes] | ForkedProcess"]
"""Starts a worker: `Device.run`, or what forks one instead."""
