"""Files that are whole or absent: atomic writes, and a checksum that tells when bytes have rotted.

A reader never sees half a file: data go to a temporary file in the same folder, are flushed to the
disk, and are renamed into place.
"""

import errno
import hashlib
import logging
import os
import secrets
import tempfile
from pathlib import Path

_MAGIC = b"archloop-1\n"
_log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/archloop``, or ``~/.cache/archloop``."""
    base = os.environ.get("XDG_CACHE_HOME")
    # The base directory specification says that a relative path counts as unset.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "archloop"


def usable_cache_dir(fallback: Path) -> Path:
    """`default_cache_dir`, or `fallback` where nothing can be written there, which is said."""
    try:
        folder = default_cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:
        # Python says that there is no home folder by a RuntimeError.
        _log.warning("the cache cannot be written (%s); using %s", error, fallback)
        return fallback


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent; parent folders are made.

    Raises:
        OSError: the disk is full or the folder is not writable; nothing is left behind. Or the
            path has no name, as "." and "/".
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a private temporary file: whoever may read the folder may read what it holds.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def publish(draft: Path, path: Path) -> None:
    """Put a finished file, written beside `path` by other means, into its place for good."""
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)


def write_checked(path: Path, content: bytes) -> None:
    """As `write_atomic`, with a checksum in front for `read_checked`."""
    write_atomic(path, _MAGIC + hashlib.sha256(content).digest() + content)


def read_checked(path: Path) -> bytes | None:
    """Content written by `write_checked`; None when the file is absent or damaged."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    start = len(_MAGIC) + hashlib.sha256().digest_size
    digest, content = raw[len(_MAGIC) : start], raw[start:]
    if not raw.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
        return None
    return content


def _sync(path: Path) -> None:
    """Make a file, or the renames in a folder, durable where the system lets folders be opened."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
