"""An Android phone over adb: programs run in its shell, artifacts lie where a shell may run them.

There is no Python there, so a runtime needs a runner of its own for the phone's processor
(`Runtime.runner`). The phone's own files tell load, clock, temperature and charge; a phone that is
charging, or hot, is flagged like any other device, and not refused.
"""

import hashlib
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from archloop.devices import linux
from archloop.devices.base import (
    Device,
    DeviceError,
    DeviceInfo,
    Readings,
    full_disk,
    in_a_shell,
    piped,
)

_ANSWER_S = 60.0
_GONE = ("device offline", "no devices", "not found", "unauthorized", "device still", "closed")
"""What adb says when it cannot reach the phone; its exit status is 1 for anything."""

_ABOUT = linux.script(
    files=(linux.CPUINFO, linux.MEMINFO),
    commands={
        "cores": ("nproc",),
        "model": ("getprop", "ro.product.model"),
        "chip": ("getprop", "ro.soc.model"),
        "release": ("getprop", "ro.build.version.release"),
        "kernel": ("uname", "-r"),
    },
)
_READINGS = linux.script(
    files=(linux.STAT, linux.MEMINFO, linux.VMSTAT, linux.LOADAVG),
    patterns={
        "clocks": linux.CLOCKS,
        "sensors": linux.SENSORS,
        "governors": linux.GOVERNORS,
    },
    commands={"ticks": ("getconf", "CLK_TCK")},
)


class Android(Device):
    """A phone with USB debugging switched on, or an emulator."""

    class Config(Device.Config):
        """Which phone.

        Attributes:
            serial: as ``adb devices`` lists it; None where one is connected only.
            folder: there, gets what is pushed; programs may be run from it.
        """

        serial: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$")] | None = None
        folder: Annotated[str, Field(pattern=r"^/.")] = "/data/local/tmp/archloop"

    config: Config

    @property
    def address(self) -> str:
        return f"android {self.config.serial or 'the only one'}"

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("adb"):
            return None
        return "needs the adb command; apt-get install adb"

    def describe(self) -> DeviceInfo:
        told = linux.sections(self._ask(_ABOUT))
        cores = told.get("cores", "").strip()
        model, chip = told.get("model", "").strip(), told.get("chip", "").strip()
        return DeviceInfo(
            processor=" ".join(word for word in (model, chip or linux.processor(told)) if word),
            num_cores=int(cores) if cores.isdigit() else 1,
            memory_bytes=linux.memory_bytes(told),
            os=f"Android {told.get('release', '').strip()}, {told.get('kernel', '').strip()}",
        )

    def readings(self) -> Readings:
        told = linux.sections(self._ask(_READINGS))
        ticks = told.get("ticks", "").strip()
        return linux.readings(
            told,
            told.get("clocks", "").split("\n"),
            told.get("sensors", "").split("\n"),
            told.get("governors", "").split("\n"),
            time_s=time.monotonic(),
            ticks=int(ticks) if ticks.isdigit() else 100,
        )

    def push(self, local: Path) -> str:
        # Named by its sender too: another study may push the same files, and remove its own.
        there = f"{self.config.folder}/{_digest(local)}-{self._sender}"
        marked = f"{there}/.whole"
        if self._ask(f"test -e {shlex.quote(marked)} && echo yes; true").strip() == "yes":
            return there
        # adb copies a folder into one that is there, and under its new name into one that is not.
        self._ask(f"rm -rf -- {shlex.quote(there)}; mkdir -p {shlex.quote(self.config.folder)}")
        try:
            self._adb("push", str(local), there)
            self._ask(f"touch {shlex.quote(marked)}")
        except DeviceError:
            self._forget(there)
            raise
        return there

    def remove(self, path: str) -> None:
        assert path.startswith(f"{self.config.folder}/"), f"{path} was not pushed"
        self._ask(f"rm -rf -- {shlex.quote(path)}")

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        # -T: no terminal, so that bytes arrive as they are and both streams stay apart.
        return piped([*self._client(), "shell", "-T", in_a_shell(argv, env)], stderr)

    def is_gone(self, status: int, last_line: str) -> bool:
        return status != 0 and _says_gone(last_line)

    @cached_property
    def _sender(self) -> str:
        return secrets.token_hex(4)

    def _client(self) -> list[str]:
        return ["adb", *(["-s", self.config.serial] if self.config.serial else [])]

    def _ask(self, commands: str) -> str:
        """Standard output of shell commands there; what is put in them must be quoted."""
        return self._adb("shell", "-T", shlex.join(["sh", "-c", commands]))

    def _adb(self, *words: str) -> str:
        size_s = 600.0 if words[0] == "push" else _ANSWER_S
        try:
            done = subprocess.run(
                [*self._client(), *words], capture_output=True, check=False, timeout=size_s
            )
        except subprocess.TimeoutExpired:
            raise DeviceError("gone", f"{self._label} did not answer in {size_s:.0f} s") from None
        except FileNotFoundError:
            raise DeviceError("missing", f"no adb here; {self.missing()}") from None
        if done.returncode == 0:
            return done.stdout.decode(errors="replace").replace("\r\n", "\n")
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no message"
        if _says_gone(last):
            remedy = "connect it, and look at what `adb devices` says"
            raise DeviceError("gone", f"{self._label} cannot be reached ({last}); {remedy}")
        if (full := full_disk(lines)) is not None:
            raise DeviceError("disk", f"{self._label}: {full}; free some there")
        raise DeviceError("crash", f"{self._label}: {last} (status {done.returncode})")

    def _forget(self, path: str) -> None:
        """Remove what is left of a push that failed, if the phone still answers."""
        try:
            self._ask(f"rm -rf -- {shlex.quote(path)}")
        except DeviceError:
            return

    @property
    def _label(self) -> str:
        return f"device android:{self.config.serial or 'the one connected'}"


def _says_gone(line: str) -> bool:
    return line.startswith(("adb:", "error:")) and any(word in line for word in _GONE)


def _digest(folder: Path) -> str:
    """Names a folder by the names and contents of its files."""
    hasher = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        hasher.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            hasher.update(hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()[:24]
