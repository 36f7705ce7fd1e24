"""A Linux machine over ssh, through the system's own client and its configuration.

Nothing is installed there: programs start through a login shell, folders travel as tar streams into
a folder of ours and are removed again, readings are the text of ``/proc`` and ``/sys``. Arguments
are quoted for the shell on the far side, every one of them, and settings never become options.
"""

import os
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from archloop.devices import linux
from archloop.devices.base import DeviceInfo
from archloop.devices.remote import RemoteDevice, digest_of, sending_s

_BROKEN = 255
"""Exit status of the client when there is no connection, or none any more."""
_WORD = r"[A-Za-z0-9_.:@%\[\]][A-Za-z0-9_.:@%\[\]-]*"
"""No leading dash, which would be an option, and nothing that a shell reads."""

_ABOUT = linux.script(
    files=(linux.CPUINFO, linux.MEMINFO),
    commands={
        "cores": ("nproc",),
        "system": ("uname", "-srm"),
        "cards": linux.NVIDIA_SMI,
    },
)


class Ssh(RemoteDevice):
    """A machine that the system's ssh client reaches without asking for anything."""

    class Config(RemoteDevice.Config):
        """How to reach it; what is not given is as the client's own configuration says.

        Attributes:
            host: name, address or alias of the machine.
            user: to log in as.
            port: of its server.
            identity_file: private key.
            config_file: of the client, in place of the user's.
            python: there, an interpreter that can import archloop; runtimes with a runner of their
                own need none.
            folder: there, from the home folder; gets what is pushed.
            connect_timeout_s: until it counts as not there.
        """

        host: Annotated[str, Field(pattern=f"^{_WORD}$")]
        user: Annotated[str, Field(pattern=f"^{_WORD}$")] | None = None
        port: Annotated[int, Field(ge=1, le=65535)] | None = None
        identity_file: str | None = None
        config_file: str | None = None
        python: str | None = None
        folder: Annotated[str, Field(min_length=1)] = ".cache/archloop"
        connect_timeout_s: Annotated[int, Field(ge=1, le=600)] = 10

    config: Config

    @property
    def address(self) -> str:
        # User and interpreter are left out: the same machine under another user or Python is the
        # same device, and is leased as one.
        port = "" if self.config.port is None else f" {self.config.port}"
        return f"ssh {self.config.host}{port}"

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("ssh"):
            return None
        return "needs the ssh command; apt-get install openssh-client"

    def describe(self) -> DeviceInfo:
        told = linux.sections(self.ask(_ABOUT))
        cores = told.get("cores", "").strip()
        return DeviceInfo(
            processor=linux.processor(told) or told.get("system", "").strip().split(" ")[-1],
            num_cores=int(cores) if cores.isdigit() else 1,
            memory_bytes=linux.memory_bytes(told),
            os=told.get("system", "").strip(),
            accelerators=linux.accelerators(told.get("cards", "")),
        )

    def push(self, local: Path) -> str:
        there = self.place(digest_of(local))
        part = f"{there}.part"
        commands = (
            f"if test -d {shlex.quote(there)}; then cat > /dev/null; else "
            f"mkdir -p {shlex.quote(part)} && tar -xf - -C {shlex.quote(part)} && "
            f"mv {shlex.quote(part)} {shlex.quote(there)}; fi"
        )
        try:
            with _packed(local) as stream:
                self.ask(commands, stream, sending_s(local))
        except BaseException:
            # Also when the user stops it: nobody else knows of what is there by now.
            self.forget(part, there)
            raise
        return there

    def python_argv(self) -> tuple[str, ...] | None:
        python = self.config.python
        if python is not None and python.startswith("~/"):
            python = self._from_home(python)
        return None if python is None else (python, "-P")

    def is_gone(self, status: int, last_line: str) -> bool:
        del last_line
        return status == _BROKEN

    @cached_property
    def pushed_to(self) -> str:
        """Whole path of the folder that gets what is pushed."""
        folder = self.config.folder
        whole = folder if folder.startswith("/") else self._from_home(folder)
        return whole.rstrip("/")

    def _from_home(self, path: str) -> str:
        """Whole path of what lies in the home folder there, with ``~/`` before it or without.

        All words are quoted, so that no shell there writes the folder for ``~``.
        """
        return f"{self._home}/{path.removeprefix('~/')}"

    @cached_property
    def _home(self) -> str:
        return self.ask("pwd").strip()

    def client(self, line: str) -> list[str]:
        config = self.config
        options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={config.connect_timeout_s}"]
        # A line that broke is noticed within 20 seconds.
        options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        for option, value in (
            ("-F", config.config_file),
            ("-i", config.identity_file),
            ("-l", config.user),
            ("-p", config.port),
        ):
            if value is not None:
                options += [option, str(value)]
        return ["ssh", *options, "--", config.host, line]

    @property
    def label(self) -> str:
        return f"device ssh:{self.config.host}"

    @property
    def reach_it(self) -> str:
        return f"check that `ssh {self.config.host}` works without a password"


@contextmanager
def _packed(folder: Path) -> Iterator[IO[bytes]]:
    """A folder as a tar stream, written as it is read: memory need not hold an artifact.

    Raises:
        OSError: at the end, where a file could not be read. To the reader, a stream that ends
            between two files looks whole.
    """
    reading, writing = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        packing = pool.submit(_pack, folder, writing)
        try:
            with os.fdopen(reading, "rb") as stream:
                yield stream
        finally:
            # Nobody reads any more, so it ends if it has not yet.
            packing.result()


def _pack(folder: Path, into: int) -> None:
    """Write a folder into an open file as a tar stream, until nobody reads it."""
    with (
        suppress(BrokenPipeError),
        os.fdopen(into, "wb") as pipe,
        tarfile.open(fileobj=pipe, mode="w|") as tar,
    ):
        for path in sorted(folder.rglob("*")):
            if "__pycache__" in path.parts or not (path.is_file() or path.is_dir()):
                continue
            entry = tar.gettarinfo(path, path.relative_to(folder).as_posix())
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = 0
            if entry.isfile():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
