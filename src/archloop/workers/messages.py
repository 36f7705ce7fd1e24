"""How a study and a worker talk: one line of JSON each way, of frozen, versioned types.

The study writes ``{"command": NAME, ...}`` to the worker's standard input and reads one line from
its standard output: ``{"ok": {...}}`` or ``{"error": {"cause": ..., "detail": ...}}``. `Hello`
comes first, so that two sides of different versions part at once. What else may be asked depends on
the work: `workers.wire` has the measuring commands.
"""

import platform
import sys
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from archloop.workers.deaths import Cause

VERSION = 3
"""Of the protocol: raised whenever a message changes, and equal on both sides."""


class Message(BaseModel):
    """Plain data that crosses the wire; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


A = TypeVar("A", bound=Message)


class Request(Message, Generic[A]):
    """A command; `A` is the type of its answer."""

    command: str

    @classmethod
    def answer_type(cls) -> type[A]:
        """What a worker answers."""
        for base in cls.__mro__:
            arguments = getattr(base, "__pydantic_generic_metadata__", {}).get("args", ())
            if arguments:
                found: type[A] = arguments[0]
                return found
        raise AssertionError(f"{cls.__name__} does not say what answers it")


class Done(Message):
    """The answer where there is nothing to tell."""


class Failure(Message):
    """Why a command came to nothing.

    Attributes:
        cause: `crash` (a fault of the program), `timeout`, `memory` (it ran out), `disk` (it is
            full), `gone` (the device cannot be reached), `missing` (the device lacks something),
            `unsupported` (the engine refuses the stack).
        detail: one line for people.
    """

    cause: Cause
    detail: str


class HelloAnswer(Message):
    """Who answers.

    Attributes:
        wire: version of the protocol that the worker speaks.
        archloop: version of archloop that the worker is part of; null for a program of its own.
        engine: name and version of the engine, as ``llama.cpp b10605``; null if none was named.
        abi: system and processor that the worker was built for, as ``linux-x86_64``.
        missing: what the device lacks to run the engine, with the remedy; null when nothing.
    """

    wire: int
    archloop: str | None = None
    engine: str | None = None
    abi: str
    missing: str | None = None


class Hello(Request[HelloAnswer]):
    """The first command of every worker.

    Attributes:
        wire: version of the protocol that the study speaks. A worker that speaks another one
            answers with its own all the same, and the study ends there.
        runtime: plug-in name of the engine that will be asked for; null for work without one.
        plugins: folders of archloop plug-ins on the device; a program of its own ignores them.
        memory_limit_bytes: of private memory, which the worker sets itself where the system allows.
        time_limit_s: after so many seconds in one command the worker ends itself, also in native
            code.
    """

    command: Literal["hello"] = "hello"
    wire: int = VERSION
    runtime: str | None = None
    plugins: tuple[str, ...] = ()
    memory_limit_bytes: int | None = Field(None, ge=1)
    time_limit_s: float = Field(gt=0)


def abi() -> str:
    """System and processor of this process."""
    return f"{sys.platform}-{platform.machine()}"
