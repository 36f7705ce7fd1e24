"""Reading a checkpoint's folder without trusting it, and replacing one all at once.

Only JSON, Jinja text and safetensors are ever opened; pickled weights are refused by name. Nothing
outside the folder is read, apart from the blobs that a Hugging Face cache links to.
"""

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from archloop.errors import UserError, shown

CONFIG = "config.json"
SPEC = "spec.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_JSON_BYTES = 64 << 20
_MAX_NAME_BYTES = 255


def inside(folder: Path, name: str) -> Path:
    """The path of a file that a checkpoint names.

    Raises:
        UserError: the name is no plain relative path, or leads out of the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or ".." in parts:
        raise UserError(f"{folder}: file name {name!r} leads outside the checkpoint's folder")
    if not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
        raise UserError(f"{folder}: {shown(name)} cannot be the name of a file")
    path = folder / name
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # Python says that links run in a circle by either.
        raise UserError(f"{folder}: {name!r} cannot be followed: {error}") from error
    if not real.is_relative_to(home) and not _is_cached_blob(real, home):
        raise UserError(f"{folder}: {name!r} links to {real}, outside the checkpoint's folder")
    return path


def _is_cached_blob(real: Path, home: Path) -> bool:
    """True for ``<repository>/blobs/<hash>`` seen from ``<repository>/snapshots/<revision>``."""
    return home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"


def read_text(folder: Path, name: str, max_bytes: int = MAX_JSON_BYTES) -> str | None:
    """A text file of the checkpoint; None when it has no such file.

    Raises:
        UserError: too large, not UTF-8, or outside the folder.
    """
    path = inside(folder, name)
    if not path.is_file():
        return None
    if (size := path.stat().st_size) > max_bytes:
        raise UserError(f"{path} has {size} bytes; more than {max_bytes} are not read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON object of the checkpoint; None when it has no such file.

    Raises:
        UserError: as `read_text`, or not a JSON object.
    """
    text = read_text(folder, name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{folder / name} must hold a JSON object")
    return value


def shards(folder: Path) -> dict[str, set[str] | None]:
    """Weight files by name, with the tensors that the index promises in each (None: no index).

    Raises:
        UserError: no weights, pickled weights, a malformed index, or a shard that is missing,
            pickled or outside the folder.
    """
    if inside(folder, WEIGHTS).is_file():
        return {WEIGHTS: None}
    index = read_json(folder, INDEX)
    if index is None:
        raise _no_weights(folder)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} has no 'weight_map'")
    found: dict[str, set[str] | None] = {}
    promised: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise UserError(
                f"{folder / INDEX} puts {tensor!r} in {name!r}; only .safetensors files are read, "
                "pickled ones never"
            )
        if name not in promised:
            if not inside(folder, name).is_file():
                raise UserError(f"{folder}: shard {name!r}, named by {INDEX}, is missing")
            promised[name] = set()
        promised[name].add(tensor)
    found.update(promised)
    return found


def _no_weights(folder: Path) -> UserError:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED_SUFFIXES)
    if pickled:
        return UserError(
            f"{folder} has pickled weights only ({pickled[0]}); they can run code and are never "
            "opened. Convert them to safetensors first"
        )
    return UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place once all is written.

    Weights and configuration of an existing checkpoint are replaced whole, so that no old shard
    stays beside new ones; its other files (tokenizer, licence) are kept. On an error the old
    folder is left as it was.

    Raises:
        UserError: `folder` exists and is not a checkpoint, so replacing it could lose files.
    """
    folder = folder.resolve()
    kept = _kept_files(folder)
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in kept:
            if not (temporary / path.name).exists():
                shutil.copy2(path, temporary / path.name)
        for path in temporary.iterdir():
            # The safetensors library lets only the owner read its files.
            path.chmod(temporary.stat().st_mode & 0o666)
        old = temporary.with_name(temporary.name + "-old")
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _kept_files(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    paths = list(folder.iterdir()) if folder.is_dir() else [folder]
    names = {path.name for path in paths}
    checkpoint = names & {CONFIG, SPEC} and names & {WEIGHTS, INDEX}
    if paths and not (checkpoint and all(path.is_file() for path in paths)):
        raise UserError(f"{folder} exists and is not a checkpoint; save to a new folder")
    return [p for p in paths if p.suffix != ".safetensors" and p.name not in (CONFIG, SPEC, INDEX)]
