"""A process that has imported what workers need, and forks one whenever it is asked to.

``python -m archloop.workers.fork_server SOCKET MODULE IMPORT...`` imports, listens on the socket
and says so. Importing an engine takes many times longer than forking a process that has it.

1. Whoever connects sends three open files: standard input, output and error of the worker to be.
2. The server forks and answers ``{"pid": N}``; the child runs MODULE's `main`.
3. When the child has ended, the server answers ``{"status": N}``, as Python tells it.

The server itself does nothing else: it starts no threads and touches no graphics card, as neither
outlives a fork. If the imports did either, it says that it cannot serve. It ends when its standard
input closes.
"""

import gc
import importlib
import json
import os
import selectors
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from archloop.workers import resident


def main() -> None:
    """Serve until the standard input closes."""
    address, module, *imports = sys.argv[1:]
    # Engines print while they are imported, which must not mix with what the server says.
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in imports:
        importlib.import_module(name)
    worker = importlib.import_module(module)
    if (reason := _unsafe()) is not None:
        _say(answers, {"cannot": reason})
        return
    # Collecting would write to every object, and so copy every page in every child.
    gc.collect()
    gc.freeze()
    _Server(address, worker.main).serve(answers)


def _unsafe() -> str | None:
    """Why a child would not be whole; None if it would."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"importing started {threads - 1} threads"
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(file.readlink()).startswith("/dev/nvidia"):
                return "importing reached for a graphics card"
    return None


def _say(answers: int, what: dict[str, object]) -> None:
    os.write(answers, json.dumps(what).encode() + b"\n")


class _Server:
    """The listening socket and the children that have not ended."""

    def __init__(self, address: str, work: Callable[[], None]) -> None:
        self._work = work
        self._resident = resident.of_files()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)

    def serve(self, answers: int) -> None:
        """Fork for whoever connects, and tell how children ended; says once that it does."""
        _say(answers, {"ready": True})
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._fork(self._listener.accept()[0])
                elif key.data is None:
                    if not os.read(0, 1):
                        return
                else:
                    self._ended(key)

    def _fork(self, client: socket.socket) -> None:
        _, files, _, _ = socket.recv_fds(client, 1, 3)
        if len(files) != 3:
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            self._child(files)
        for file in files:
            os.close(file)
        # The child does so too. Whoever is told of it may kill its group before it has run at all.
        _lead(pid)
        client.sendall(json.dumps({"pid": pid}).encode() + b"\n")
        watch = os.pidfd_open(pid)
        self._selector.register(watch, selectors.EVENT_READ, (pid, watch, client))

    def _ended(self, key: selectors.SelectorKey) -> None:
        pid, watch, client = key.data
        self._selector.unregister(watch)
        os.close(watch)
        _, status = os.waitpid(pid, 0)
        told = {"status": os.waitstatus_to_exitcode(status)}
        # Whoever asked for it may be gone.
        with suppress(OSError):
            client.sendall(json.dumps(told).encode() + b"\n")
        client.close()

    def _child(self, files: list[int]) -> None:
        status = 1
        try:
            _lead(0)
            for target, file in enumerate(files):
                os.dup2(file, target)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            resident.take_in(self._resident)
            self._work()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _lead(pid: int) -> None:
    # The other side may have been faster, and the child may even have ended.
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)


if __name__ == "__main__":
    main()
