"""The worker's side: one process, one command at a time, an answer to each.

Engines print, hang in native code and take all memory; none of it may mix with the answers or
outlive the study. So standard output is set aside before anything is loaded, a timer of the kernel
ends a command that takes too long, the process offers itself when memory runs out, and it ends when
its input closes, whatever it is doing.
"""

import json
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import ValidationError

from archloop import registry
from archloop.version import __version__
from archloop.workers.deaths import WorkerError, cause_of, one_line
from archloop.workers.messages import VERSION, Failure, Hello, HelloAnswer, Message, Request, abi
from archloop.workers.victim import prefer_as_victim

_ALARM_GRACE_S = 5

Handler = Callable[[Any], Message]
"""Carries out one request; whatever it raises becomes an answer."""


class Engine(NamedTuple):
    """What `Hello` tells of an engine: name and version, and what this machine lacks to run it."""

    version: str
    missing: str | None


def serve(
    handlers: Mapping[type[Request[Any]], Handler],
    engine: Callable[[str], Engine] | None = None,
) -> None:
    """Serve requests until the input closes.

    Args:
        handlers: by type of request.
        engine: tells of a runtime by its plug-in name; None where the work needs none.
    """
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    prefer_as_victim()
    requests: queue.Queue[bytes] = queue.Queue()
    reader = threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True)
    reader.start()
    server = _Server(handlers, engine)
    while True:
        answers.write(json.dumps(server.answer(requests.get())).encode() + b"\n")


class _Server:
    """Requests by name, and the time limit that `Hello` brought."""

    def __init__(
        self,
        handlers: Mapping[type[Request[Any]], Handler],
        engine: Callable[[str], Engine] | None,
    ) -> None:
        by_name = {str(each.model_fields["command"].default): each for each in handlers}
        self._requests: dict[str, type[Request[Any]]] = {"hello": Hello, **by_name}
        self._handlers: dict[type[Request[Any]], Handler] = {**handlers, Hello: self._hello}
        self._engine = engine
        self._time_limit_s = 0.0

    def answer(self, line: bytes) -> dict[str, Any]:
        """What to write for one line of input."""
        command = "request"
        try:
            given = json.loads(line)
            command = str(given.get("command"))
            if command not in self._requests:
                raise ValueError(f"known: {', '.join(self._requests)}")
            request = self._requests[command].model_validate(given)
            if self._time_limit_s:
                # No handler: the kernel ends the process even if it hangs in native code.
                signal.alarm(int(self._time_limit_s) + _ALARM_GRACE_S)
            return {"ok": self._handlers[type(request)](request).model_dump(mode="json")}
        except Exception as error:
            traceback.print_exc()
            detail = f"{command}: {_told(error)}"
            return {"error": Failure(cause=cause_of(error), detail=detail).model_dump()}
        finally:
            signal.alarm(0)

    def _hello(self, request: Hello) -> HelloAnswer:
        self._time_limit_s = request.time_limit_s
        for folder in request.plugins:
            registry.add_folder(Path(folder))
        if (limit := request.memory_limit_bytes) is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        told = None
        if request.runtime is not None and self._engine is not None:
            told = self._engine(request.runtime)
        return HelloAnswer(
            wire=VERSION,
            archloop=__version__,
            engine=None if told is None else told.version,
            abi=abi(),
            missing=None if told is None else told.missing,
        )


def _told(error: Exception) -> str:
    if isinstance(error, WorkerError):
        return error.detail
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return one_line(error)


def _read(stream: BinaryIO, requests: "queue.Queue[bytes]") -> None:
    for line in stream:
        requests.put(line)
    # The parent is gone or done: nobody will read an answer.
    os._exit(0)
