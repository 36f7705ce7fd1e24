"""What a runtime loads: a folder of files and a manifest that says what they are.

The manifest is written last and holds the checksum of every file, so a folder with a manifest is
whole, and what was changed or lost on the way to a device is told before it is measured.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.stack.spec import StackSpec

MANIFEST = "manifest.json"


class Manifest(BaseModel):
    """What an artifact is.

    Attributes:
        version: of the engine that wrote it.
        precision: dtype of activations and state.
        weight_bytes: bytes of weights by precision, such as ``{"int4": ..., "float32": ...}``:
            how much of the model the quantisation covers.
        files: SHA-256 of each file, by name.
        parity_error: largest difference from eager PyTorch's logits, in standard deviations of
            them; None where the check was not made.
        parity_bound: what that error had to stay below.
        composed: it was put together from pieces that were lowered before, rather than as a whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: StackSpec
    runtime: str
    version: str
    quant: str
    precision: str
    weight_bytes: dict[str, int]
    files: dict[str, str]
    parity_error: float | None = None
    parity_bound: float | None = None
    composed: bool = False

    def write(self, directory: Path) -> None:
        """Write it into its artifact's folder, whole or not at all."""
        write_atomic(directory / MANIFEST, self.model_dump_json(indent=1).encode())


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact whose files are all there and unchanged.

    Raises:
        UserError: it is absent or damaged, or a file does not match its checksum.
    """
    path = directory / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{directory} holds no whole artifact; export it again") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged; export the artifact again") from error
    found = checksums(directory)
    for name, expected in manifest.files.items():
        if found.get(name) != expected:
            state = "changed" if name in found else "missing"
            raise UserError(f"{directory / name} is {state}; export the artifact again")
    return manifest


def checksums(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of an artifact but the manifest, by relative name."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST and not path.name.startswith("."):
            about = path.stat()
            stamp = (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            found[path.relative_to(directory).as_posix()] = _sha256(path.absolute(), stamp)
    return found


@lru_cache(maxsize=4096)
def _sha256(path: Path, stamp: tuple[int, ...]) -> str:
    """Of a file that is as it was at a stamp of its inode, size and times.

    A process that loads an artifact for one context after another need not read it again: the
    weights of 350 million parameters take half a second.
    """
    del stamp
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
