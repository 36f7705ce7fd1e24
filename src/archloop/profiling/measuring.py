"""What a process that measures an engine answers: the commands of `workers.wire`.

How it runs the engine is its own affair: in the process itself (`worker`), or as a program on a
device (`bench_worker`).
"""

from abc import ABC, abstractmethod
from typing import Any

from archloop.workers import wire
from archloop.workers.messages import Done, Request
from archloop.workers.serve import Engine, Handler, serve


class Measuring(ABC):
    """A method for each command; whatever it raises becomes an answer."""

    def serve(self) -> None:
        """Answer until the input closes."""
        handlers: dict[type[Request[Any]], Handler] = {
            wire.Start: self.start,
            wire.Open: self.open,
            wire.Fill: self.fill,
            wire.Prefill: self.prefill,
            wire.Decode: self.decode,
            wire.Logits: self.logits,
            wire.ReadMemory: self.memory,
            wire.Close: self.close,
        }
        serve(handlers, self.engine)

    @abstractmethod
    def engine(self, name: str) -> Engine:
        """What there is of the runtime of that name, which `start` will load."""

    @abstractmethod
    def start(self, asked: wire.Start) -> wire.Started:
        """Load the engine with no model in it; answers its memory."""

    @abstractmethod
    def open(self, asked: wire.Open) -> wire.Opened:
        """Load an artifact in place of the one before."""

    @abstractmethod
    def fill(self, asked: wire.Fill) -> Done:
        """Stand at a depth."""

    @abstractmethod
    def prefill(self, asked: wire.Prefill) -> wire.Prefilled:
        """Time a prompt, from the start or from where the state stands."""

    @abstractmethod
    def decode(self, asked: wire.Decode) -> wire.Decoded:
        """Time decode steps."""

    @abstractmethod
    def logits(self, asked: wire.Logits) -> wire.LogitRows:
        """Logits of given tokens, from an empty state."""

    @abstractmethod
    def memory(self, asked: wire.ReadMemory) -> wire.Reading:
        """Peak since the model was opened, and processor time so far."""

    @abstractmethod
    def close(self, asked: wire.Close) -> Done:
        """Free the model."""
