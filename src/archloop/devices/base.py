"""How to reach hardware: describe it, wait until it is ready, push files, run a program there.

A device is one file in `devices/` with one subclass of `Device`. Programs are ordinary child
processes here (of `ssh` or `adb` for a device elsewhere) that are spoken to through their standard
input and output, so nothing above knows where they run.
"""

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar

from pydantic import BaseModel, ConfigDict


class Readings(BaseModel):
    """What a device reports of itself at one moment; None where it cannot tell.

    Attributes:
        busy_s: processor seconds used by all programs since boot, summed over cores.
        steal_s: processor seconds that a hypervisor gave to others.
        clock_mhz: mean clock over cores.
        temperature_c: of the hottest sensor.
        available_memory_bytes: that a program can have without swapping.
        oom_kills: processes killed since boot because memory ran out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_s: float
    busy_s: float | None = None
    steal_s: float | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    available_memory_bytes: int | None = None
    oom_kills: int | None = None


class Device(ABC):
    """A machine that models run on.

    Attributes:
        name: the plug-in's name, set by the registry.
    """

    name: ClassVar[str] = ""

    @abstractmethod
    def describe(self) -> dict[str, str | int | float | None]:
        """Processor model, cores, memory, operating system, kernel: what a report shows."""

    @abstractmethod
    def readings(self) -> Readings:
        """Load, clock and temperature now. They flag a measurement, they do not forbid it."""

    @abstractmethod
    def wait_until_ready(self, timeout_s: float) -> bool:
        """Wait until nothing else keeps the device busy; False when time ran out first.

        Raises:
            ValueError: the device cannot be reached; the message says what to check.
        """

    @abstractmethod
    def push(self, local: Path) -> str:
        """Bring a folder to the device, unless it is there already; returns its path there."""

    @abstractmethod
    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a program on the device, with pipes as its standard input and output.

        The child leads a process group of its own, which the caller may kill. A program that
        cannot be killed that way, on another machine, must end when its standard input closes.
        """

    @abstractmethod
    def worker_argv(self) -> list[str]:
        """``python -m archloop.profiling.worker``, or a program that speaks its protocol."""

    @property
    def label(self) -> str:
        """Which hardware this is, as part of a measurement's identity."""
        about = self.describe()
        return f"{self.name}: {about['cpu']}, {about['num_cores']} cores"
