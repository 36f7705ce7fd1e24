"""Corpora: documents for training and held-out documents that training never sees.

Without any file, the corpus is the source code and docstrings of the running Python's standard
library, which every installation has. A document's side is decided by a hash of its name or
content, so it stays where it is when other documents come or go.
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from archloop.errors import UserError

CHUNK_CHARS = 8192
"""Plain text is cut into documents of about this size, at blank lines."""

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)


class CorpusConfig(BaseModel):
    """Where the text comes from.

    Attributes:
        source: the standard library's sources, or the files in `paths`.
        paths: text, ``.jsonl`` or ``.parquet`` files; relative ones start at the recipe's folder.
        field: JSONL field or Parquet column that holds a document.
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
        files = [resolve(path, root) for path in config.paths]
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


def resolve(path: str, root: Path) -> Path:
    """The regular file that a recipe's path means.

    Raises:
        UserError: a URL, a relative path that leaves `root` (also by a symbolic link), or not a
            regular file.
    """
    if "://" in path:
        raise UserError(f"corpus path {path!r} is a URL; download it and give the file's path")
    if "\0" in path or not path:
        raise UserError(f"corpus path {path!r} is not a file name")
    base = root.resolve()
    try:
        full = (base / path).resolve()
        exists, is_file = full.exists(), full.is_file()
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
    if not is_file:
        what = "is not a regular file" if exists else "does not exist"
        raise UserError(f"corpus file {full} {what}; correct corpus.paths")
    return full


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


def _read(file: Path, field: str) -> list[_Document]:
    readers: dict[str, Any] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(file.suffix.lower())
    try:
        texts = _read_text(file) if reader is None else reader(file, field)
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read corpus file {file}: {error}; it must be UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read corpus file {file}: {error}; restore it") from error
    documents = [_Document(text, text) for text in texts if text.strip()]
    if not documents:
        raise UserError(f"corpus file {file} has no text; remove it from corpus.paths")
    return documents


def _read_text(file: Path) -> list[str]:
    chunks, size = [""], 0
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if size >= CHUNK_CHARS and not line.strip():
            chunks.append("")
            size = 0
        chunks[-1] += line
        size += len(line)
    return chunks


def _read_jsonl(file: Path, field: str) -> list[str]:
    texts = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[field]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{file}:{number}: no JSON object with field {field!r}; set corpus.field"
                ) from error
            texts.append(_checked(text, f"{file}:{number}", field))
    return texts


def _read_parquet(file: Path, field: str) -> list[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(
            f"{file}: reading Parquet needs pyarrow; install archloop[parquet]"
        ) from error
    try:
        table = parquet.read_table(file, columns=[field])
    except (ArrowException, KeyError) as error:
        raise UserError(
            f"{file}: not Parquet with a column {field!r} ({error}); set corpus.field"
        ) from error
    if field not in table.column_names:
        raise UserError(f"{file}: no column {field!r}; set corpus.field")
    values = table.column(field).to_pylist()
    return [_checked(v, f"{file} row {i}", field) for i, v in enumerate(values) if v is not None]


def _checked(text: object, where: str, field: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where}: {field!r} holds {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {field!r} holds half of a surrogate pair, which no UTF-8 text can; "
            "remove that line"
        ) from error
    return text
