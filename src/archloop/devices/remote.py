"""What devices have in common that a program here reaches: ``ssh``, ``adb``.

Everything there is done by lines of a POSIX shell, whose words are quoted. What goes wrong is told
apart by the program's exit status and last words: the device is gone, its disk is full, or the
line failed there. Readings are the text of ``/proc`` and ``/sys``.

What is pushed goes with the measurement. A process that is killed leaves it there, so its name
says which process of which machine it is from, and the next one of that machine removes it, until
the machine is started anew.
"""

import hashlib
import os
import platform
import re
import secrets
import shlex
import subprocess
import time
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from archloop.devices import linux
from archloop.devices.base import (
    QUIET_CORES,
    Device,
    DeviceError,
    Readings,
    full_disk,
    in_a_shell,
    piped,
)

ANSWER_S = 60.0
"""Within which a device must have answered."""
_SEND_S = 600.0
"""Within which a folder must have arrived that weighs next to nothing."""
_SAMPLE_S = 0.5
_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""A number that Linux draws when it starts; containers see it too."""
READINGS = linux.script(
    files=(linux.STAT, linux.MEMINFO, linux.VMSTAT, linux.LOADAVG),
    patterns={
        "clocks": linux.CLOCKS,
        "sensors": linux.SENSORS,
        "governors": linux.GOVERNORS,
    },
    commands={"ticks": ("getconf", "CLK_TCK")},
)


class RemoteDevice(Device):
    """A device that a program of this machine, the client, runs shell lines on."""

    class Config(Device.Config):
        """What such devices share.

        Attributes:
            programs: folder of this machine with engines' own programs, built for the device's
                processor, such as ``llama-bench``: for a device without Python.
        """

        programs: Annotated[str, Field(min_length=1)] | None = None

    config: Config
    _is_tidy = False
    """What killed processes left there has been removed."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The device in messages."""

    @property
    @abstractmethod
    def pushed_to(self) -> str:
        """Folder there that gets what is pushed."""

    @property
    @abstractmethod
    def reach_it(self) -> str:
        """What a user does about a device that cannot be reached."""

    @abstractmethod
    def client(self, line: str) -> list[str]:
        """The client's command that runs a shell line there."""

    def readings(self) -> Readings:
        return parsed(self.ask(READINGS), time.monotonic())

    def wait_until_ready(self, timeout_s: float) -> bool:
        """As every device; both readings of a sample come over one connection.

        Making one keeps the far side busier than the limit allows.
        """
        deadline = time.monotonic() + timeout_s
        pause = f"sleep {_SAMPLE_S}; echo '== next'"
        while True:
            first, _, second = self.ask(f"{READINGS}\n{pause}\n{READINGS}").partition("== next")
            before, after = parsed(first, 0.0), parsed(second, _SAMPLE_S)
            if before.busy_s is None or after.busy_s is None:
                return True
            if (after.busy_s - before.busy_s) / _SAMPLE_S <= QUIET_CORES:
                return True
            if time.monotonic() >= deadline:
                return False

    def programs(self) -> Path | None:
        folder = self.config.programs
        return None if folder is None else Path(folder).expanduser().resolve()

    def remove(self, path: str) -> None:
        assert path.startswith(f"{self.pushed_to}/"), f"{path} was not pushed"
        self.ask(f"rm -rf -- {shlex.quote(path)}")

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        # Without a shell of its own, sshd closes at a signal, and the client says what it says for
        # a lost line.
        return piped(self.client(in_a_shell(argv, env)), stderr)

    def place(self, digest: str) -> str:
        """Whole path there of a folder to push, by the digest of its content.

        It is named by its sender too: another study may push the same files, and remove its own.
        """
        if not self._is_tidy:
            self._remove_left()
            self._is_tidy = True
        return f"{self.pushed_to}/{digest}-{self._sender}"

    @cached_property
    def _sender(self) -> str:
        return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"

    def _remove_left(self) -> None:
        """Remove what processes of this machine pushed that were killed before they removed it."""
        listed = self.ask(f"ls {shlex.quote(self.pushed_to)} 2>/dev/null; true").splitlines()
        if left := [f"{self.pushed_to}/{name}" for name in listed if self._is_left(name)]:
            # What another user left may not be removed, and much of it takes its time on a slow
            # disk: neither is a fault of this push.
            self.forget(*left)

    @staticmethod
    def _is_left(name: str) -> bool:
        """Whether a folder there is of a process of this machine that has ended."""
        pattern = rf"[0-9a-f]{{24}}-{_machine()}-(\d{{1,9}})-[0-9a-f]{{8}}(\.part)?"
        found = re.fullmatch(pattern, name)
        return found is not None and not _is_running(int(found[1]))

    def ask(self, commands: str, given: IO[bytes] | None = None, limit_s: float = ANSWER_S) -> str:
        """Standard output of shell commands there; what is put in them must be quoted.

        Args:
            commands: lines of a POSIX shell.
            given: an open file, of which their standard input is the rest.
            limit_s: within which they must have ended.
        """
        return self.told(self.client(shlex.join(["sh", "-c", commands])), given, limit_s)

    def told(
        self, argv: Sequence[str], given: IO[bytes] | None = None, limit_s: float = ANSWER_S
    ) -> str:
        """Standard output of the client.

        Raises:
            DeviceError: it failed, or did not end in time.
        """
        stdin = subprocess.DEVNULL if given is None else given
        try:
            done = subprocess.run(
                argv, stdin=stdin, capture_output=True, check=False, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            raise DeviceError("gone", f"{self.label} did not answer in {limit_s:.0f} s") from None
        except FileNotFoundError:
            raise DeviceError("missing", f"{self.label} {self.missing()}") from None
        if done.returncode == 0:
            return done.stdout.decode(errors="replace").replace("\r\n", "\n")
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        lines = words.splitlines() or ["no message"]
        if self.is_gone(done.returncode, lines[-1]):
            raise DeviceError(
                "gone", f"{self.label} cannot be reached ({lines[-1]}); {self.reach_it}"
            )
        if (full := full_disk(lines)) is not None:
            raise DeviceError("disk", f"{self.label}: {full}; free some there")
        raise DeviceError("crash", f"{self.label}: {lines[-1]} (status {done.returncode})")

    def forget(self, *paths: str) -> None:
        """Remove what is left of pushes that failed, if the device still answers and lets us."""
        try:
            self.ask(f"rm -rf -- {shlex.join(paths)}")
        except DeviceError:
            return


def digest_of(folder: Path) -> str:
    """Names a folder by the names and contents of its files."""
    hasher = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        hasher.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            hasher.update(hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()[:24]


def sending_s(folder: Path) -> float:
    """Seconds within which a folder must have arrived, if a line brings a megabyte in each."""
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return _SEND_S + num_bytes / 1e6


def _machine() -> str:
    """What tells this machine, since it was started, from others that use a device.

    Names and network addresses do not: containers and copies of one image on several machines may
    have the same, and containers number their processes apart. Where one machine is taken for
    another, the files of a process that runs there would be removed.
    """
    try:
        told = f"{_BOOT.read_text()} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        # No Linux, and so no container.
        told = str(uuid.getnode())
    return hashlib.sha256(f"{platform.node()} {told}".encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        # A process that may not be asked is another user's, and runs.
        return isinstance(error, PermissionError)
    return True


def parsed(text: str, time_s: float) -> Readings:
    """Readings from what `READINGS` printed; None where that is nonsense."""
    told = linux.sections(text)
    ticks = told.get("ticks", "").strip()
    return linux.readings(
        told,
        told.get("clocks", "").split("\n"),
        told.get("sensors", "").split("\n"),
        told.get("governors", "").split("\n"),
        time_s=time_s,
        ticks=int(ticks) if ticks.isdigit() else 100,
    )
