"""An engine's own benchmark program, for devices that have no Python to drive the engine from.

Such a program takes its work as arguments, does it in one process and prints the times. A subclass
says which arguments these are and reads what is printed. `profiling.bench_worker` runs the program
on the device and answers the wire protocol with what it found.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

Arguments = tuple[str, ...]


class Benchmark(ABC):
    """How one engine's program is told what to do. Every method gives its arguments.

    Attributes:
        program: the program's name, in the folder of those built for the device.
    """

    program: ClassVar[str]

    @abstractmethod
    def about(self) -> Arguments:
        """Print which version it is, and end."""

    @abstractmethod
    def version(self, printed: str) -> str | None:
        """The version, from what `about` printed; None if it is not there."""

    @abstractmethod
    def empty(self) -> Arguments:
        """Load the engine and no model, and end."""

    @abstractmethod
    def prompt(self, folder: str, threads: int, tokens: int, depth: int) -> Arguments:
        """Warm up, then time one prompt.

        Args:
            folder: of the artifact, on the device.
            threads: that the engine computes with.
            tokens: of the prompt.
            depth: tokens in the state before it.
        """

    @abstractmethod
    def steps(self, folder: str, threads: int, count: int, depth: int) -> Arguments:
        """Warm up, then time single decode steps at a depth; other arguments as `prompt`."""

    @abstractmethod
    def request(self, folder: str, threads: int, tokens: int, steps: int) -> Arguments:
        """Take in a prompt and decode after it, as a user does: for its memory, not its times."""

    @abstractmethod
    def times_ms(self, printed: str) -> tuple[float, ...]:
        """Milliseconds of each timed prompt or step, from what was printed.

        Raises:
            ValueError: there are none, or something else was printed; the message shows it.
        """
