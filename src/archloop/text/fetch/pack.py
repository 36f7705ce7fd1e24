"""One file that carries a corpus to a machine without network: the corpus, and wheels if need be.

A plain tar: the corpus's files are compressed already, and wheels are too.
"""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.text.fetch import packages
from archloop.text.fetch.build import LICENCES, MANIFEST, read_manifest

CORPUS_FOLDER = "corpus"
WHEELS_FOLDER = "wheels"


def pack(
    folder: Path, output: Path, *, wheels: Sequence[Path] = (), max_bytes: int | None = None
) -> int:
    """Pack a built corpus; bytes of the result.

    Args:
        folder: of the corpus.
        output: the tar file to write.
        wheels: files that travel too.
        max_bytes: refuse a larger result.

    Raises:
        UserError: the folder is no built corpus, one of its files is damaged, or all of it is too
            large.
    """
    manifest = read_manifest(folder)
    if not manifest.sources:
        raise UserError(f"{folder} holds no built corpus; run archloop corpus fetch first")
    for name, entry in manifest.sources.items():
        file = folder / entry.file
        if not file.is_file() or packages.sha256(file) != entry.sha256:
            raise UserError(f"{file} is damaged; run archloop corpus fetch {name} again")
    names = [MANIFEST, LICENCES, *(entry.file for entry in manifest.sources.values())]
    entries = [(f"{CORPUS_FOLDER}/{name}", folder / name) for name in names]
    entries += [(f"{WHEELS_FOLDER}/{wheel.name}", wheel) for wheel in wheels]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, file in entries:
            info = tarfile.TarInfo(name)
            content = file.read_bytes()
            # No owner and no time, so that equal corpora give equal files.
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    size = buffer.getbuffer().nbytes
    if max_bytes is not None and size > max_bytes:
        raise UserError(
            f"the pack takes {size / 2**20:.1f} MiB, more than {max_bytes / 2**20:.0f}; "
            "pack fewer sources or wheels"
        )
    write_atomic(output, buffer.getvalue())
    return size


def unpack(file: Path, output: Path) -> Path:
    """Unpack into a folder; the corpus's folder in it.

    Raises:
        UserError: no pack, or a damaged one.
    """
    try:
        with tarfile.open(file) as archive:
            # The filter refuses names that lead out of the folder, links and devices.
            archive.extractall(output, filter="data")
    except packages.DAMAGE as error:
        raise UserError(f"{file} is no pack of a corpus, or damaged ({error})") from error
    folder = output / CORPUS_FOLDER
    sources = read_manifest(folder).sources
    if not sources:
        raise UserError(f"{file} is no pack of a corpus; archloop corpus pack makes one")
    for name, entry in sources.items():
        found = folder / entry.file
        # A manifest is as little to be trusted as the names in the archive.
        is_inside = Path(entry.file).name == entry.file
        if not is_inside or not found.is_file() or packages.sha256(found) != entry.sha256:
            raise UserError(f"{file} is damaged at {name}; pack it again")
    return folder
