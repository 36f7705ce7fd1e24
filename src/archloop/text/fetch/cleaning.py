"""From a package's members to documents of plain text: one function for each form of source.

Each takes the members of a package and yields documents; what is no text (indices, pictures,
scripts) is passed over.
"""

import gzip
import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from archloop.text.fetch.documents import Document, Member, parts

_DROPPED = re.compile(
    r"<!--.*?-->|<(script|style|pre|head|nav|svg)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE
)
_ITEM = re.compile(r"<(li|dt)\b[^>]*>", re.IGNORECASE)
_BREAK = re.compile(
    r"</?(p|div|h[1-6]|ul|ol|dl|dd|table|tr|blockquote|section|article|br)\b[^>]*>", re.IGNORECASE
)
_TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
_SPACES = re.compile(r"[ \t\r\f\v\xa0]+")
_BLANKS = re.compile(r"\n\s*\n+")
_RST_NOISE = re.compile(r"^\.\. (SPDX|_|only::|index::|include::|toctree::).*$", re.MULTILINE)
_CODE_FOLDERS = frozenset({"test", "tests", "testing", "idle_test", "locale", "migrations"})


def html_text(source: str) -> str:
    """Readable text of HTML: paragraphs apart by a blank line, scripts and code blocks dropped."""
    # Line ends inside HTML mean no more than spaces.
    text = _DROPPED.sub(" ", source).replace("\n", " ")
    text = _BREAK.sub("\n\n", _ITEM.sub("\n\n- ", text))
    text = html.unescape(_TAG.sub("", text))
    return squeezed(text)


def squeezed(text: str) -> str:
    """Text with runs of spaces and of blank lines as one each."""
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return _BLANKS.sub("\n\n", "\n".join(lines)).strip()


def html_pages(members: Iterable[Member]) -> Iterator[Document]:
    """HTML pages, one document each."""
    for name, content in members:
        if name.endswith((".html", ".htm")):
            yield Document(name, html_text(content.decode("utf-8", "replace")))


def help_pages(members: Iterable[Member]) -> Iterator[Document]:
    """Pages of LibreOffice's help, without what each says of itself at its end."""
    for name, text in html_pages(members):
        yield Document(name, text.partition("Help content debug info:")[0].strip())


def rst_pages(members: Iterable[Member]) -> Iterator[Document]:
    """reStructuredText sources, one document each; translations and generated copies left out."""
    for name, content in members:
        is_copy = "/html/" in name and "/_sources/" not in name
        if not is_copy and "translations" not in name and name.endswith((".rst", ".rst.txt")):
            text = _RST_NOISE.sub("", content.decode("utf-8", "replace"))
            yield Document(name, _BLANKS.sub("\n\n", text).strip())


def dictionary(members: Iterable[Member]) -> Iterator[Document]:
    """A dictionary in dictd's form (its text is gzip), cut between entries."""
    for name, content in members:
        if name.endswith(".dict.dz"):
            text = gzip.decompress(content).decode("utf-8", "replace")
            text = text.replace("[1913 Webster]", "").replace("{", "").replace("}", "")
            # An entry starts at the line's first column, its definition is indented.
            entries = re.split(r"\n(?=\S)", text)
            yield from parts(name, (_BLANKS.sub("\n", entry).strip() for entry in entries))


def wordnet(members: Iterable[Member]) -> Iterator[Document]:
    """WordNet's definitions: ``word, word: gloss`` of each group of synonyms."""
    for name, content in members:
        if re.search(r"/data\.(noun|verb|adj|adv)$", name):
            yield from parts(name, _glosses(content.decode("utf-8", "replace")))


def _glosses(data: str) -> Iterator[str]:
    for line in data.splitlines():
        if line.startswith(" "):
            # The licence stands above the data, indented.
            continue
        fields, _, gloss = line.partition(" | ")
        columns = fields.split(" ")
        words = columns[4 : 4 + 2 * int(columns[3], 16) : 2]
        said = ", ".join(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words)
        yield f"{said}: {gloss.strip()}"


def botocore(members: Iterable[Member]) -> Iterator[Document]:
    """Documentation of cloud APIs, one document for a service, from its newest version."""
    newest: dict[str, Member] = {}
    for member in members:
        match = re.search(r"data/([\w.-]+)/([\d-]+)/service-2\.json$", member.name)
        if match and member.name >= newest.get(match[1], Member("", b"")).name:
            newest[match[1]] = member
    said = _Once()
    for member in newest.values():
        model = json.loads(member.content)
        lines = [html_text(model.get("documentation", ""))]
        for part in ("operations", "shapes"):
            for title, entry in model.get(part, {}).items():
                lines.append(said(title, entry.get("documentation", "")))
                for key, value in entry.get("members", {}).items():
                    lines.append(said(f"{title}.{key}", value.get("documentation", "")))
        yield Document(member.name, "\n\n".join(line for line in lines if line))


def google_api(members: Iterable[Member]) -> Iterator[Document]:
    """Documentation of Google's APIs from their discovery documents, one document each."""
    said = _Once()
    for name, content in members:
        if "/discovery_cache/documents/" in name and name.endswith(".json"):
            lines = [said(title, text) for title, text in _described("", content)]
            yield Document(name, "\n\n".join(line for line in lines if line))


def _described(title: str, content: bytes) -> Iterator[tuple[str, str]]:
    """Each ``description`` of a JSON document, with the path of keys to it."""
    waiting: list[tuple[str, Any]] = [(title, json.loads(content))]
    while waiting:
        path, value = waiting.pop()
        text = value.get("description")
        if isinstance(text, str):
            yield path, text
        for key, inner in value.items():
            if isinstance(inner, dict):
                grouping = key in ("properties", "schemas", "methods", "resources", "parameters")
                waiting.append((path if grouping else f"{path}.{key}".lstrip("."), inner))


class _Once:
    """Titled descriptions, each said where it stands first: APIs repeat them under many titles."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, title: str, source: str) -> str:
        text = html_text(source)
        if not text or text in self._seen:
            return ""
        self._seen.add(text)
        return f"{title}: {text}"


def python_code(members: Iterable[Member]) -> Iterator[Document]:
    """Python modules, one document each; tests, translations and other encodings left out."""
    for name, content in members:
        folders = name.split("/")[:-1]
        if not name.endswith(".py") or not _CODE_FOLDERS.isdisjoint(folders):
            continue
        if "encodings" in folders or ".data" in folders[:1]:
            continue
        try:
            yield Document(name, content.decode("utf-8"))
        except UnicodeDecodeError:
            # A few sources carry another encoding on purpose, as samples.
            continue
