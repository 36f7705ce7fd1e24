"""Reading a checkpoint's folder without trusting it, and replacing what it holds all at once.

Only JSON, Jinja text and safetensors are ever opened; pickled weights are refused by name. Nothing
outside the folder is read, apart from the blobs that a Hugging Face cache links to.
"""

import json
import logging
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from archloop.errors import UserError, shown
from archloop.files import publish
from archloop.stack.weights import SPEC, WEIGHTS

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_JSON_BYTES = 64 << 20
_MAX_NAME_BYTES = 255

_STAGING = ".archloop-save-"
_WEIGHT_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "consolidated*.pth",
    "tf_model.h5",
    "flax_model.msgpack",
)
"""Weights that a save replaces: beside new ones they would be another model's."""
_EXPORT_PATTERNS = ("*.gguf", "*.onnx", "onnx", "*.pte", "openvino*")
_HARMLESS = {"README.md", "LICENSE", "LICENSE.txt", "lost+found"} | {
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", "generation_config.json"),
}
"""What a folder may hold that is no checkpoint yet: a new repository, a new volume, a tokenizer."""
_log = logging.getLogger(__name__)


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
    """An empty folder to write a checkpoint to, whose files take their places once all are there.

    The folder itself is never renamed: it may be a mounted volume, or where a process stands.

    1. All new files are written to a hidden folder inside `folder`, so on the same disk.
    2. Weights and configuration of the old checkpoint are moved into that folder, so that no old
       shard and no weights of another format stay beside the new ones. Whatever else lies there
       (tokenizer, licence, ``.git``) stays.
    3. The new files are moved into place, those last that make a folder a checkpoint.

    On an error in any step the old checkpoint is there again as it was. A process that is killed
    in step 2 or 3 leaves a folder that is no checkpoint, and the hidden folder with all files.

    Raises:
        UserError: `folder` holds files and is not a checkpoint, so that it may be a mistake.
    """
    folder = folder.resolve()
    check_replaceable(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f"{_STAGING}{secrets.token_hex(4)}"
    try:
        staging.mkdir()
        yield staging
        _swap(staging, folder)
        _warn_of_exports(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def interrupted(folder: Path) -> str:
    """What to add to "no checkpoint" where a save was cut off; empty where none was."""
    left = sorted(folder.glob(f"{_STAGING}*"))
    if not left:
        return ""
    return f"; a save was cut off here, whose files are in {left[0].name}: save again, or move them"


def _swap(staging: Path, folder: Path) -> None:
    """Steps 2 and 3 of `replacing`."""
    new = sorted(staging.iterdir(), key=lambda path: (path.name in (CONFIG, SPEC), path.name))
    names = {path.name for path in new}
    old = [path for path in folder.iterdir() if _is_replaced(path) or path.name in names]
    aside = staging / "old"
    aside.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for path in old:
            path.rename(aside / path.name)
            moved.append((path, aside / path.name))
        for path in new:
            # The safetensors library lets only the owner read its files.
            path.chmod(folder.stat().st_mode & 0o666)
            publish(path, folder / path.name)
            moved.append((path, folder / path.name))
    except BaseException:
        for before, after in reversed(moved):
            after.rename(before)
        raise


def _is_replaced(path: Path) -> bool:
    """Configuration, or weights in a format that a loader might prefer to ours."""
    named = path.name in (CONFIG, SPEC, INDEX)
    return named or any(path.match(pattern) for pattern in _WEIGHT_PATTERNS)


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder has the configuration that makes it a checkpoint."""
    return any((folder / name).exists() for name in (CONFIG, SPEC))


def check_replaceable(folder: Path) -> None:
    """Refuse a place where `replacing` writes no checkpoint.

    Raises:
        UserError: a file is there, or a folder of files that is no checkpoint, so that it may be a
            mistake.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} exists and is a file; save to a folder")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    strange = names - _HARMLESS
    checkpoint = names & {CONFIG, SPEC} and any(_is_replaced(folder / name) for name in strange)
    if strange and not checkpoint:
        raise UserError(
            f"{folder} exists and is not a checkpoint (it holds {min(strange)!r}); "
            "save to a new folder"
        )


def _warn_of_exports(folder: Path) -> None:
    """Exports of the weights before stay, since they may be wanted; that they are old is said."""
    stale = sorted(p.name for p in folder.iterdir() if any(p.match(e) for e in _EXPORT_PATTERNS))
    if stale:
        _log.warning("%s: %s was made from the weights before", folder, ", ".join(stale))
