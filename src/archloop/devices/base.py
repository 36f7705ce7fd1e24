"""How to reach hardware: describe it, wait until it is ready, push files, run a program there.

A device is one file in `devices/` with one subclass of `Device`. Programs are ordinary child
processes here (of `ssh` or `adb` for a device elsewhere) that are spoken to through their standard
input and output, so nothing above knows where they run. What it takes to reach one device and not
another of the same plug-in (an address, a serial number, a card's index) is the class's own
`Config`, which a recipe gives beside the device's name.
"""

import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from archloop.devices.energy import Counters
from archloop.devices.lease import Claim
from archloop.errors import UserError

QUIET_CORES = 0.25
"""Other programs may keep this many cores busy before a device counts as not ready."""
_SAMPLE_S = 0.2


class DeviceError(UserError):
    """A device did not do what it was asked: it cannot be reached, is full, or answers nonsense.

    Attributes:
        cause: as of a worker's death: gone, disk, missing (something here), or crash.
    """

    def __init__(self, cause: Literal["gone", "disk", "missing", "crash"], message: str) -> None:
        super().__init__(message)
        self.cause: Literal["gone", "disk", "missing", "crash"] = cause


def full_disk(lines: Iterable[str]) -> str | None:
    """The line that says that a disk, or one's share of it, is full."""
    words = ("no space left", "quota exceeded")
    return next((line for line in lines if any(word in line.lower() for word in words)), None)


def piped(
    argv: Sequence[str], stderr: IO[bytes], env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A program in a session of its own, spoken to over its standard input and output."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=env,
        start_new_session=True,
        bufsize=0,
    )


def in_a_shell(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """A program as a line for a shell elsewhere.

    A shell of its own stands around the program: a signal that ends the program is then told as
    128 + its number. A program's status of 255, which C programs give as -1, is told as 254: ssh
    ends with 255 where there is no connection any more.
    """
    settings = [f"{key}={value}" for key, value in env.items()]
    script = '"$@"; status=$?; [ $status != 255 ] || status=254; exit $status'
    return shlex.join(["sh", "-c", script, "sh", "env", *settings, *argv])


class Readings(BaseModel):
    """What a device reports of itself at one moment; None where it cannot tell.

    Attributes:
        busy_s: processor seconds used by all programs since boot, summed over cores.
        steal_s: processor seconds that a hypervisor gave to others.
        clock_mhz: mean clock over cores.
        temperature_c: of the hottest sensor.
        available_memory_bytes: that a program can have without swapping.
        oom_kills: processes killed since boot because memory ran out.
        load: programs that ran or waited to run, averaged over the last minute.
        governor: what chooses the clock of the processor's cores, as ``performance``; several are
            joined by commas.
        affinity: cores that archloop's own process may use, which its workers inherit.
        clock_cap_mhz: mean over cores of the clock that the system allows at the moment, which is
            lower while a phone is too warm.
        throttling: how much the system says it slows down for heat, from 0, not at all, to 6.
        battery_percent: charge of the battery.
        charging: it is being charged, which warms the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_s: float
    busy_s: float | None = None
    steal_s: float | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    available_memory_bytes: int | None = None
    oom_kills: int | None = None
    load: float | None = None
    governor: str | None = None
    affinity: tuple[int, ...] | None = None
    clock_cap_mhz: float | None = None
    throttling: int | None = None
    battery_percent: float | None = None
    charging: bool | None = None


class Accelerator(BaseModel):
    """A processor beside the main one, such as a graphics card, with memory of its own or None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    memory_bytes: int | None = None


class DeviceInfo(BaseModel):
    """Which hardware a device is, and which system runs on it.

    Attributes:
        processor: model of the main processor.
        num_cores: that programs may keep busy.
        memory_bytes: of the machine; None where it does not tell.
        os: operating system and kernel.
        accelerators: that programs may use, in the order in which they are numbered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    num_cores: int
    memory_bytes: int | None = None
    os: str
    accelerators: tuple[Accelerator, ...] = ()

    @property
    def label(self) -> str:
        """Which hardware this is, as part of a measurement's identity.

        Memory and system are left out: a kernel's update changes both by a little, and leaves the
        hardware what it is.
        """
        cards = [card.name for card in self.accelerators]
        cores = f"{self.num_cores} core" + "s" * (self.num_cores != 1)
        return ", ".join([self.processor, cores, *cards])


class Device(ABC):
    """A machine that models run on.

    Args:
        config: which one, and how it is reached; the defaults if None.

    Attributes:
        name: the plug-in's name, set by the registry.
        is_here: programs on it are child processes of this one that may share its files.
    """

    name: ClassVar[str] = ""
    is_here: ClassVar[bool] = False

    class Config(BaseModel):
        """Settings of a device, which a recipe gives beside its name; none in the base."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def missing(cls) -> str | None:
        """What this machine lacks to reach such devices, with the remedy; None when nothing."""
        return None

    @abstractmethod
    def describe(self) -> DeviceInfo:
        """Processor, cores, memory, accelerators and system.

        Raises:
            DeviceError: the device cannot be reached; the message says what to check.
        """

    @abstractmethod
    def readings(self) -> Readings:
        """Load, clock and temperature now. They flag a measurement, they do not forbid it."""

    def energy(self, on_card: bool) -> Counters | None:
        """What the device has used so far, at once and at no cost to who is measured.

        Args:
            on_card: the engine computes on a graphics card, whose counter is asked for.

        Returns:
            None where it cannot tell.
        """
        del on_card
        return None

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Wait until nothing else keeps the device busy; False when time ran out first.

        Raises:
            DeviceError: the device cannot be reached; the message says what to check.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            before = self.readings()
            if before.busy_s is None:
                return True
            time.sleep(_SAMPLE_S)
            after = self.readings()
            assert after.busy_s is not None
            if (after.busy_s - before.busy_s) / (after.time_s - before.time_s) <= QUIET_CORES:
                return True
            if time.monotonic() >= deadline:
                return False

    def claims(self, on_card: bool) -> tuple[Claim, ...]:
        """What a measurement takes: the device alone, and a share of this machine, which exports.

        Args:
            on_card: the engine computes on a graphics card.
        """
        del on_card
        return Claim("host", alone=False), Claim(self.address, alone=True)

    @property
    def address(self) -> str:
        """What tells this device from all others that can be reached from here."""
        settings = self.config.model_dump(exclude_none=True, exclude_defaults=True)
        return " ".join([self.name, *(f"{key}={settings[key]}" for key in sorted(settings))])

    @abstractmethod
    def push(self, local: Path) -> str:
        """Bring a folder to the device, unless it is there already; returns its path there."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete a folder that `push` brought; what was there before `push` stays."""

    @abstractmethod
    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a program on the device, with pipes as its standard input and output.

        The child leads a process group of its own, which the caller may kill. A program that
        cannot be killed that way, on another machine, must end when its standard input closes.
        """

    def python_argv(self) -> tuple[str, ...] | None:
        """The Python there that can import archloop, with its options; None if there is none."""
        return None

    def programs(self) -> Path | None:
        """Folder of this machine with engines' own programs for the device; None: there is none."""
        return None

    def is_gone(self, status: int, last_line: str) -> bool:
        """Whether a program ended because the device can no longer be reached.

        Args:
            status: exit status of the local process.
            last_line: of its standard error.
        """
        del status, last_line
        return False
