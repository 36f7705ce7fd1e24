"""Measuring and exporting processes: forked from one that has the engine, or started if that fails.

Most of a short measurement is the import of the engine, twice a pair of processes. A process that
has imported it and done nothing else can be copied in milliseconds, and each copy is fresh: it has
met no model, no thread and no graphics card. What the server's start decided, such as its memory,
all its copies share, so on a processor they are no samples of their own. Which processes were
forked is kept with the samples.
"""

import os
import subprocess
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from archloop.devices.base import Device
from archloop.profiling.exporter import EXPORTER
from archloop.runtimes.base import WORKER, Runtime
from archloop.workers.forking import ForkedProcess, ForkError, ForkServer

_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "TORCH_WARM_POOL": "0"}
"""NumPy's library starts threads when it is imported, which a fork would lose, and PyTorch's
compiler processes, which wait for work that a measuring process hardly has."""


class Nursery:
    """Servers by what they have imported, each started when first needed.

    Attributes:
        reasons: why processes of a runtime are started and not forked, by the runtime's name.
    """

    def __init__(self) -> None:
        self._servers: dict[object, ForkServer] = {}
        self._starting: defaultdict[object, threading.Lock] = defaultdict(threading.Lock)
        self.reasons: dict[str, str] = {}

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        device: Device,
        runtime: Runtime,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stderr: IO[bytes],
    ) -> "subprocess.Popen[bytes] | ForkedProcess":
        """Start a runner on a device, as `Device.run` does."""
        server = self._server(device, runtime, argv, env)
        if server is not None:
            try:
                return server.fork(stderr)
            except ForkError as error:
                self.reasons[runtime.name] = str(error)
        return device.run(argv, env=env, stderr=stderr)

    def close(self) -> None:
        """End all servers."""
        while self._servers:
            self._servers.popitem()[1].close()

    def _server(
        self, device: Device, runtime: Runtime, argv: Sequence[str], env: Mapping[str, str]
    ) -> ForkServer | None:
        python = device.python_argv() or ()
        *program, module = argv
        ours = tuple(program) == (*python, "-m") and module in (WORKER, EXPORTER)
        if not (ours and device.is_here and runtime.imports):
            # No reason against the same runtime on another target, which may be forked.
            return None
        if runtime.name in self.reasons:
            return None
        key = (repr(device.config), runtime.name, module, tuple(sorted(env.items())), os.getpid())
        # Measurements and exports on several devices ask at once, and share a server.
        with self._starting[key]:
            if key not in self._servers:
                try:
                    self._servers[key] = _serving(device, module, runtime, {**env, **_NO_THREADS})
                except ForkError as error:
                    self.reasons[runtime.name] = str(error)
                    return None
            return self._servers[key]


def _serving(device: Device, module: str, runtime: Runtime, env: Mapping[str, str]) -> ForkServer:
    """A server with as many of a runtime's imports as can be forked.

    Raises:
        ForkError: not even those can that every process needs.
    """
    for count in range(len(runtime.likely_imports), 0, -1):
        likely = [name for group in runtime.likely_imports[:count] for name in group]
        with suppress(ForkError):
            return ForkServer(device, module, [*runtime.imports, *likely], env)
    return ForkServer(device, module, runtime.imports, env)
