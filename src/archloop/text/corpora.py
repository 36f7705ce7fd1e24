"""Corpora: documents for training and held-out documents that training never sees.

Without any file, the corpus is the source code and docstrings of the running Python's standard
library, which every installation has. A document's side is decided by a hash of its name or
content, so it stays where it is when other documents come or go.
"""

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from archloop.errors import UserError
from archloop.text import reading

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)


class CorpusConfig(BaseModel):
    """Where the text comes from.

    Attributes:
        source: the standard library's sources, or the files in `paths`.
        paths: files, folders (all that `reading.READABLE` names, at any depth) or patterns such as
            ``data/*.jsonl``; relative ones start at the recipe's folder.
        field: JSON field or column that holds a document.
        heldout_share: share of documents kept for evaluation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["stdlib", "files"] = "stdlib"
    paths: tuple[str, ...] = ()
    field: str = "text"
    heldout_share: float = Field(default=0.05, gt=0, lt=1)

    @model_validator(mode="after")
    def _check_paths(self) -> "CorpusConfig":
        if self.source == "files" and not self.paths:
            raise ValueError("corpus source 'files' needs at least one entry in paths")
        if self.source == "stdlib" and self.paths:
            raise ValueError("corpus source 'stdlib' takes no paths; set source: files")
        return self


class Corpus(NamedTuple):
    """Documents by side; `digest` is a hash of both sides' names and texts."""

    train: list[str]
    heldout: list[str]
    digest: str


class _Document(NamedTuple):
    key: str
    text: str


def load(config: CorpusConfig, root: Path) -> Corpus:
    """Read a corpus.

    Args:
        config: what to read.
        root: folder that relative paths start from and must stay in (the recipe's folder).

    Raises:
        UserError: a file is missing, unreadable, outside `root`, of a wrong form, or too little
            text is left for one of the sides; names file and remedy.
    """
    if config.source == "stdlib":
        documents = list(_stdlib_documents())
    else:
        files = dict.fromkeys(file for path in config.paths for file in resolve(path, root))
        documents = [document for file in files for document in _read(file, config.field)]
    train: list[str] = []
    heldout: list[str] = []
    digest = hashlib.sha256()
    for document in documents:
        is_heldout = _fraction(document.key) < config.heldout_share
        (heldout if is_heldout else train).append(document.text)
        for part in (document.key, document.text, "held out" if is_heldout else "train"):
            digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    if not train or not heldout:
        side = "training" if not train else "held-out"
        raise UserError(
            f"corpus {_describe(config)} has {len(documents)} documents, none of them {side}; "
            f"give more text or change heldout_share={config.heldout_share}"
        )
    return Corpus(train, heldout, digest.hexdigest())


def load_kept(config: CorpusConfig, root: Path) -> Corpus:
    """As `load`, but read once for callers in a row that want the same, until a file changes.

    What it gives is shared: leave it as it is.

    Raises:
        OSError: a file was taken away meanwhile.
        UserError: as `load`.
    """
    files = [] if config.source == "stdlib" else config.paths
    found = dict.fromkeys(file for path in files for file in resolve(path, root))
    stats = {file: file.stat() for file in found}
    stamps = tuple((file, each.st_mtime_ns, each.st_size) for file, each in stats.items())
    return _kept(config, root, stamps)


@lru_cache(maxsize=1)
def _kept(config: CorpusConfig, root: Path, stamps: tuple[tuple[Path, int, int], ...]) -> Corpus:
    del stamps  # They tell a file from what it was.
    return load(config, root)


def resolve(path: str, root: Path) -> list[Path]:
    """The regular files that a recipe's path means, in order of their names.

    Raises:
        UserError: a URL, a relative path that leaves `root` (also by a symbolic link), neither a
            regular file nor a folder, or no file that can be read is meant.
    """
    if "://" in path:
        raise UserError(
            f"corpus path {path!r} is a URL; download it and give the file's path, or fetch a data "
            "set by archloop corpus fetch"
        )
    if "\0" in path or not path:
        raise UserError(f"corpus path {path!r} is not a file name")
    base = root.resolve()
    full = _followed(path, base)
    if full.is_dir():
        inside = (file for file in full.rglob("*") if reading.is_readable(file))
        return _inside(path, base, full, inside, f"no file that ends in {reading.READABLE}")
    if not full.exists() and any(sign in path for sign in "*?["):
        start = Path(Path(path).anchor or base)
        pattern = str(Path(path).relative_to(start)) if Path(path).is_absolute() else path
        found = _matching(path, start, pattern)
        return _inside(path, base, start, found, "no file of that pattern")
    if not full.is_file():
        what = "is not a regular file" if full.exists() else "does not exist"
        raise UserError(f"corpus file {full} {what}; correct corpus.paths")
    return [full]


def _matching(path: str, start: Path, pattern: str) -> list[Path]:
    """What a pattern means below `start`."""
    try:
        return list(start.glob(pattern))
    except ValueError as error:
        # Up to version 3.12 Python takes ** for whole folders only, not inside a name.
        raise UserError(f"corpus path {path!r}: {error}; correct corpus.paths") from error


def _followed(path: str, base: Path) -> Path:
    """A path with all its links followed, which must not lead out of `base` if it is relative."""
    try:
        full = (base / path).resolve()
        full.exists()
    except (OSError, RuntimeError) as error:
        # Python 3.11 and 3.12 tell of a circle of symbolic links by a RuntimeError.
        what = error.strerror if isinstance(error, OSError) else "symbolic links lead in a circle"
        raise UserError(
            f"corpus path {path[:80]!r} cannot be followed: {what}; correct corpus.paths"
        ) from error
    if not Path(path).is_absolute() and not full.is_relative_to(base):
        raise UserError(
            f"corpus path {path!r} leads outside {base}; move the file there or give an "
            "absolute path"
        )
    return full


def _inside(path: str, base: Path, start: Path, found: Iterable[Path], none: str) -> list[Path]:
    """The regular files below `start` that a folder or pattern means, hidden ones left out.

    Raises:
        UserError: there are none (then said by `none`), or a link leads out of `base`.
    """
    files = []
    for file in sorted(found):
        is_hidden = any(part.startswith(".") for part in file.relative_to(start).parts)
        if not is_hidden and file.is_file():
            # Absolute and relative paths differ in whether a link may lead outside.
            asked = file if Path(path).is_absolute() else file.relative_to(base)
            files.append(_followed(str(asked), base))
    if not files:
        raise UserError(f"corpus path {path!r} holds {none}; correct corpus.paths")
    return files


def _describe(config: CorpusConfig) -> str:
    return "stdlib" if config.source == "stdlib" else ", ".join(config.paths)


def _fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _stdlib_documents() -> Iterator[_Document]:
    """Standard-library modules, less tests and the generated tables of `encodings`."""
    folder = Path(sysconfig.get_path("stdlib"))
    for file in sorted(folder.rglob("*.py")):
        name = file.relative_to(folder)
        if _SKIPPED_FOLDERS.isdisjoint(name.parts) and name.parts[0] != "encodings":
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                # A few sources carry another encoding on purpose, as samples.
                continue
            if text.strip():
                yield _Document(name.as_posix(), text)


def _read(file: Path, field: str) -> Iterator[_Document]:
    texts = reading.read_texts(file, field)
    if not texts:
        raise UserError(f"corpus file {file} has no text; remove it from corpus.paths")
    return (_Document(text, text) for text in texts)
