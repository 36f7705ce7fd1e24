"""Documents out of a file, whatever common form people keep text in.

The form follows from the file's name: JSON lines, JSON, comma- or tab-separated values, Parquet,
and all else plain text; each also compressed. Bytes are UTF-8, or UTF-16 where a byte order mark
says so. What cannot be text is refused and never trained on.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from archloop.errors import UserError

CHUNK_CHARS = 8192
"""Plain text is cut into documents of about this size, at blank lines."""
MAX_CHUNK_CHARS = 8 * CHUNK_CHARS
"""Plain text without blank lines is cut here: at a line's end, or inside a line that is longer."""

READABLE = ".txt, .md, .rst, .jsonl, .ndjson, .json, .csv, .tsv, .parquet, each also .gz, .bz2, .xz"
"""What a folder's files must end in to be read; named alone, a file may have any ending."""

_HEAD_BYTES = 4096
_TEXT = frozenset({".txt", ".md", ".rst"})
_COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
_UNREADABLE = frozenset({".zst", ".zip", ".tar", ".tgz", ".7z", ".pdf", ".docx", ".arrow"})


def is_readable(file: Path) -> bool:
    """Whether a file's name says that it holds documents, so that a folder's reader takes it."""
    suffix = _form(file)
    return suffix in _TEXT or suffix in _READERS or suffix == ".parquet"


def read_texts(file: Path, field: str) -> list[str]:
    """Documents of a file in its order, those without text left out.

    Args:
        file: a regular file.
        field: JSON field or column that holds a document.

    Raises:
        UserError: unreadable, damaged, not text, or of another form than its name says; names the
            file, the line where there is one, and the remedy.
    """
    suffix = _form(file)
    if suffix in _UNREADABLE:
        raise UserError(
            f"corpus file {file}: {suffix} is not read; convert it to one of {READABLE}"
        )
    try:
        if suffix == ".parquet":
            texts = _parquet(file, field)
        else:
            with _opened(file) as stream:
                lines = _decoded(stream, file)
                reader = _READERS.get(suffix)
                found = plain_chunks(lines) if reader is None else reader(lines, file, field)
                texts = list(found)
        return [text for text in texts if text.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read corpus file {file}: {error}; it must be UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"cannot read corpus file {file}: {error}; restore it") from error


def _form(file: Path) -> str:
    """The ending that tells a file's form, without that of its compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _opened(file: Path) -> Any:
    """A file's bytes, decompressed."""
    opener = _COMPRESSED.get(file.suffix.lower())
    return file.open("rb") if opener is None else opener(file)


def _decoded(stream: IO[bytes], file: Path) -> IO[str]:
    """A file's characters, by its byte order mark or as UTF-8.

    Raises:
        UserError: there are zero bytes where text is expected.
    """
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    encoding = "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in head:
        raise UserError(
            f"corpus file {file} holds zero bytes: it is binary, or UTF-16 without a byte order "
            "mark; convert it to UTF-8, for instance by iconv -f UTF-16LE -t UTF-8"
        )
    return io.TextIOWrapper(stream, encoding=encoding)


def plain_chunks(lines: Iterable[str]) -> Iterator[str]:
    """Plain text in documents: cut at blank lines, and before it grows past `MAX_CHUNK_CHARS`."""
    kept: list[str] = []
    size = 0
    for piece in _pieces(lines):
        is_break = size >= CHUNK_CHARS and not piece.strip()
        if kept and (is_break or size + len(piece) > MAX_CHUNK_CHARS):
            yield "".join(kept)
            kept, size = [], 0
        kept.append(piece)
        size += len(piece)
    yield "".join(kept)


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Lines, also those that only a form feed or a line separator ends, none too long."""
    for physical in lines:
        for line in physical.splitlines(keepends=True):
            for start in range(0, len(line), MAX_CHUNK_CHARS):
                yield line[start : start + MAX_CHUNK_CHARS]


def _json_lines(lines: Iterable[str], file: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{file}:{number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{where}: no JSON object with field {field!r}; set corpus.field"
                ) from error
            yield from _text_of(entry, where, field)


def _json(lines: Iterable[str], file: Path, field: str) -> Iterator[str]:
    """A list of objects or of texts; also JSON lines, which many files of this name hold."""
    content = "".join(lines)
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):
            # Text in JSON may hold any other line break.
            yield from _json_lines(content.split("\n"), file, field)
            return
        raise UserError(f"{file}: not JSON ({error}); correct it") from error
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise UserError(f"{file}: no list of objects with field {field!r}; make it one")
    for number, entry in enumerate(entries):
        where = f"{file} entry {number}"
        yield from (
            _checked(entry, where) if isinstance(entry, str) else _text_of(entry, where, field)
        )


def _text_of(entry: Any, where: str, field: str) -> Iterator[str]:
    """The text of a JSON object; none where it is null, as in Parquet."""
    if not isinstance(entry, dict) or field not in entry:
        raise UserError(f"{where}: no JSON object with field {field!r}; set corpus.field")
    if entry[field] is not None:
        yield from _checked(entry[field], f"{where}: {field!r}")


def _separated(delimiter: str) -> "Reader":
    def read(lines: Iterable[str], file: Path, field: str) -> Iterator[str]:
        # A document is longer than the field that the module allows at first.
        csv.field_size_limit(2**31 - 1)
        rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            if field not in (rows.fieldnames or ()):
                raise UserError(
                    f"{file}: its first line names no column {field!r}; set corpus.field"
                )
            for row in rows:
                yield from _checked(row[field] or "", f"{file}:{rows.line_num}: {field!r}")
        except csv.Error as error:
            raise UserError(f"{file}:{rows.line_num}: {error}; correct that line") from error

    return read


def _parquet(file: Path, field: str) -> list[str]:
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
    values = enumerate(table.column(field).to_pylist())
    return [
        text
        for row, value in values
        if value is not None
        for text in _checked(value, f"{file} row {row}: {field!r}")
    ]


def _checked(text: object, where: str) -> Iterator[str]:
    if not isinstance(text, str):
        raise UserError(f"{where} holds {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half of a surrogate pair, which no UTF-8 text can; remove that line"
        ) from error
    yield text


Reader = Callable[[Iterable[str], Path, str], Iterator[str]]

_READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
}
