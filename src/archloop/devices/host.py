"""This machine. Readings come from ``/proc`` and ``/sys`` where the system has them."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from archloop.devices import energy, linux
from archloop.devices.base import Accelerator, Device, DeviceInfo, Readings, piped
from archloop.devices.cores import usable_cores
from archloop.devices.energy import Counters
from archloop.devices.lease import Claim
from archloop.errors import UserError

HOST = "host"
"""What this machine's own lease goes by."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Host(Device):
    """The machine that archloop itself runs on."""

    class Config(Device.Config):
        """Which part of the machine.

        Attributes:
            gpu: index of the one graphics card that programs may see, as ``nvidia-smi`` counts;
                None leaves them all.
        """

        gpu: Annotated[int, Field(ge=0)] | None = None

    config: Config
    is_here = True

    def describe(self) -> DeviceInfo:
        files = _read(linux.CPUINFO, linux.MEMINFO)
        return DeviceInfo(
            processor=linux.processor(files) or platform.processor() or platform.machine(),
            num_cores=usable_cores(),
            memory_bytes=linux.memory_bytes(files),
            os=platform.platform(),
            accelerators=self._accelerators(),
        )

    def readings(self) -> Readings:
        found = linux.readings(
            _read(linux.STAT, linux.MEMINFO, linux.VMSTAT, linux.LOADAVG),
            _read(*_matching(linux.CLOCKS)).values(),
            _read(*_matching(linux.SENSORS)).values(),
            _read(*_matching(linux.GOVERNORS)).values(),
            time_s=time.monotonic(),
            ticks=os.sysconf("SC_CLK_TCK"),
        )
        if not hasattr(os, "sched_getaffinity"):
            return found
        return found.model_copy(update={"affinity": tuple(sorted(os.sched_getaffinity(0)))})

    def energy(self, on_card: bool) -> Counters | None:
        if not on_card:
            return energy.of_processor()
        index = card_of(self.claims(on_card))
        return None if index is None else energy.of_card(index)

    def claims(self, on_card: bool) -> tuple[Claim, ...]:
        # What computes on a card leaves the machine to others, which may train on other cards.
        if not on_card:
            return (Claim(HOST, alone=True),)
        return Claim(HOST, alone=False), Claim(self._card_claim(), alone=True)

    def _card_claim(self) -> str:
        """What its card goes by: the one it was given, or the first that it may see."""
        gpu = self.config.gpu
        return card_name(0) if gpu is None else f"{HOST} card {gpu}"

    def push(self, local: Path) -> str:
        return str(local.resolve())

    def remove(self, path: str) -> None:
        """Nothing: a pushed folder is the caller's own."""

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return piped(argv, stderr, {**os.environ, **self._card(), **env})

    def python_argv(self) -> tuple[str, ...]:
        # -P: a stray random.py in the working folder must not stand in for a library.
        return (sys.executable, "-P")

    def _card(self) -> dict[str, str]:
        if self.config.gpu is None:
            return {}
        # CUDA counts the fastest card first unless told to count as nvidia-smi does.
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", _VISIBLE: str(self.config.gpu)}

    def _accelerators(self) -> tuple[Accelerator, ...]:
        cards = _cards()
        if self.config.gpu is not None:
            if self.config.gpu >= len(cards):
                raise UserError(
                    f"device host has no gpu {self.config.gpu}; nvidia-smi lists {len(cards)}; "
                    "give one of these, from 0, or leave gpu out"
                )
            return (cards[self.config.gpu],)
        visible = _visible()
        if visible is None or any(word.startswith(("GPU-", "MIG-")) for word in visible):
            return cards
        chosen = [int(word) for word in visible if word.isdigit()]
        return tuple(cards[index] for index in chosen if index < len(cards))


def training_claims(torch_device: str) -> tuple[Claim, ...]:
    """What a training on this machine takes: a share of it, and of its graphics card.

    Args:
        torch_device: in PyTorch's words: ``cpu``, ``cuda`` or ``cuda:1``.
    """
    device_type, _, index = torch_device.partition(":")
    here = Claim(HOST, alone=False)
    if device_type != "cuda":
        return (here,)
    return here, Claim(card_name(int(index or 0)), alone=False)


def card_index(torch_device: str) -> int | None:
    """How ``nvidia-smi`` counts a card; None of what is no card, or one that it does not list.

    Args:
        torch_device: as `training_claims`.
    """
    return card_of(training_claims(torch_device))


def card_of(claims: Sequence[Claim]) -> int | None:
    """As `card_index`, of the card among what work takes."""
    for claim in claims:
        number = claim.name.removeprefix(f"{HOST} card ")
        if number.isdigit():
            return int(number)
    return None


def card_name(index: int) -> str:
    """What all processes of this machine call a card that this one counts by what it may see."""
    visible = _visible()
    if visible is None:
        return f"{HOST} card {index}"
    word = visible[index] if index < len(visible) else str(index)
    matching = [place for place, uuid in enumerate(_uuids()) if word and uuid.startswith(word)]
    return f"{HOST} card {matching[0] if matching else word}"


def _visible() -> list[str] | None:
    """What `_VISIBLE` lists; None where it is not set, and all cards are to be seen."""
    if _VISIBLE not in os.environ:
        return None
    return [word.strip() for word in os.environ[_VISIBLE].split(",")]


@cache
def _uuids() -> tuple[str, ...]:
    """Of this machine's cards, in the order in which nvidia-smi counts them."""
    if shutil.which(linux.NVIDIA_SMI[0]) is None:
        return ()
    command = [linux.NVIDIA_SMI[0], "--query-gpu=uuid", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return tuple(told.stdout.split()) if told.returncode == 0 else ()


@cache
def _cards() -> tuple[Accelerator, ...]:
    """All graphics cards of this machine."""
    if shutil.which(linux.NVIDIA_SMI[0]) is None:
        return ()
    told = subprocess.run(linux.NVIDIA_SMI, capture_output=True, text=True, check=False)
    return linux.accelerators(told.stdout) if told.returncode == 0 else ()


def _matching(pattern: str) -> list[str]:
    """Paths that an absolute pattern matches."""
    return [str(path) for path in Path("/").glob(pattern.removeprefix("/"))]


def _read(*paths: str) -> dict[str, str]:
    """Contents by path; a file that is absent, or that the kernel refuses to read, is left out."""
    found = {}
    for path in paths:
        try:
            found[path] = Path(path).read_text(errors="replace")
        except OSError:
            continue
    return found
