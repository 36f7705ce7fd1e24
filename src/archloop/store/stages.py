"""Stage files: what a finished stage of a trial left on disk, whole and checksummed or not at all.

A stage (a measurement, a training) that is on disk under the right key is never run again. The key
ties a file to its study and spec, so that a file of another recipe is not taken for this one's.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.profiling.record import Profile

T = TypeVar("T", bound=BaseModel)


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Profiled(_Plain):
    """What was measured of a spec.

    Attributes:
        profiles: by target; of a stack that broke a budget on one, none of the targets after it.
        left_out: by optional target that cannot run the spec, the reason.
    """

    profiles: dict[str, Profile]
    left_out: dict[str, str] = {}


class Stage(NamedTuple, Generic[T]):
    """A stage's result, the wall time it took and the checksum of its file."""

    value: T
    seconds: float
    checksum: str


class StageFiles:
    """The stage files of one trial.

    Args:
        folder: where they lie; made when the first is saved.
        key: of the study and the spec.

    Attributes:
        checksums: of the files loaded or saved, by name.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self.checksums: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """File of a stage."""
        return self.folder / f"{name}.json"

    def load(self, name: str, record_type: type[T]) -> Stage[T] | None:
        """A finished stage; None when there is none, or its file is damaged or not ours."""
        try:
            stage, key = _parse(self.path(name).read_bytes(), record_type)
        except (FileNotFoundError, ValueError):
            return None
        if key != self.key:
            return None
        self.checksums[name] = stage.checksum
        return stage

    def read(self, name: str, record_type: type[T], checksum: str) -> T:
        """A stage that the database vouches for, whatever its key.

        Raises:
            UserError: its file is missing, damaged, or not the one that was stored.
        """
        path = self.path(name)
        try:
            stage, _ = _parse(path.read_bytes(), record_type)
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing; restore it from a copy") from error
        except (OSError, ValueError) as error:
            what = _one_line(error)
            raise UserError(f"{path}: damaged ({what}); restore it from a copy") from error
        if stage.checksum != checksum:
            raise UserError(f"{path}: not the file that the study stored; restore it from a copy")
        return stage.value

    def save(self, name: str, value: T, seconds: float) -> Stage[T]:
        """Write a finished stage.

        Raises:
            OSError: the disk is full, or the folder is not writable; no half of it remains.
        """
        data = value.model_dump(mode="json")
        checksum = _checksum(data)
        content = {"key": self.key, "seconds": seconds, "sha256": checksum, "data": data}
        write_atomic(self.path(name), json.dumps(content).encode())
        self.checksums[name] = checksum
        return Stage(value, seconds, checksum)


def _parse(content: bytes, record_type: type[T]) -> tuple[Stage[T], str]:
    try:
        file = json.loads(content)
        data, checksum = file["data"], file["sha256"]
        value = record_type.model_validate(data)
        seconds, key = float(file["seconds"]), str(file["key"])
    except (KeyError, TypeError, RecursionError, ValidationError) as error:
        raise ValueError(f"not a stage file: {_one_line(error)}") from error
    if _checksum(data) != checksum:
        raise ValueError("the checksum differs")
    return Stage(value, seconds, checksum), key


def _checksum(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
