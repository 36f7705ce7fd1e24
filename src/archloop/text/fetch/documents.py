"""What every step of building a corpus passes on: a document, and text cut into such documents."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

PART_CHARS = 8192
"""Long texts without natural parts, such as a dictionary, are cut about this long."""


class Document(NamedTuple):
    """One document: where it was found, and its text."""

    name: str
    text: str


class Member(NamedTuple):
    """A file inside a package."""

    name: str
    content: bytes


def parts(name: str, paragraphs: Iterable[str]) -> Iterator[Document]:
    """Documents of about `PART_CHARS` from paragraphs, numbered behind `name`."""
    kept: list[str] = []
    size = number = 0
    for paragraph in paragraphs:
        kept.append(paragraph)
        size += len(paragraph)
        if size >= PART_CHARS:
            yield Document(f"{name}#{number}", "\n\n".join(kept))
            kept, size, number = [], 0, number + 1
    if kept:
        yield Document(f"{name}#{number}", "\n\n".join(kept))
