"""What is left out of a corpus: repeated paragraphs, tiny documents, and text of evaluations.

A filter is a function from a document to the document that is kept of it, or None. `Exclusion` is
the one for evaluations: a paragraph that shares `NGRAM_WORDS` words in a row with any of their
texts is dropped and counted, so that no score is a memory of its own test.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

from archloop.text.fetch.documents import Document

Filter = Callable[[Document], Document | None]

MIN_CHARS = 64
"""A shorter document carries nothing."""
NGRAM_WORDS = 13
"""As GPT-3's filter (arXiv 2005.14165, appendix C)."""

_WORD = re.compile(r"\w+")


class Repetition:
    """Drops paragraphs that an earlier document of the same source has already shown."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.num_dropped = 0

    def __call__(self, document: Document) -> Document | None:
        """The document without paragraphs that were there before."""
        kept = []
        for paragraph in document.text.split("\n\n"):
            key = hashlib.blake2b(paragraph.encode("utf-8", "replace"), digest_size=8).digest()
            if key in self._seen:
                self.num_dropped += 1
            else:
                self._seen.add(key)
                kept.append(paragraph)
        return document._replace(text="\n\n".join(kept)) if kept else None


class Exclusion:
    """Drops paragraphs that share a run of words with given texts.

    Public sets have millions of such runs: each is held as its hash, a third of its memory. Among
    so many the chance that any paragraph of a corpus is dropped for another run's hash is nil.

    Attributes:
        num_dropped: paragraphs dropped so far.
        digest: a hash of what is excluded.
    """

    def __init__(self, texts: Iterable[str], num_words: int = NGRAM_WORDS) -> None:
        self._num_words = num_words
        self._grams: set[int] = set()
        hasher = hashlib.sha256(str(num_words).encode())
        for text in texts:
            hasher.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
            self._grams.update(map(hash, _grams(text, num_words)))
        self.digest = hasher.hexdigest()
        self.num_dropped = 0

    def __call__(self, document: Document) -> Document | None:
        """The document without paragraphs that share words with the texts."""
        kept = [p for p in document.text.split("\n\n") if not self._shares(p)]
        self.num_dropped += document.text.count("\n\n") + 1 - len(kept)
        return document._replace(text="\n\n".join(kept)) if kept else None

    def _shares(self, paragraph: str) -> bool:
        return any(hash(gram) in self._grams for gram in _grams(paragraph, self._num_words))


def _grams(text: str, num_words: int) -> Iterator[str]:
    words = _WORD.findall(text.lower())
    for start in range(len(words) - num_words + 1):
        yield " ".join(words[start : start + num_words])


def filtered(documents: Iterable[Document], filters: Iterable[Filter]) -> Iterator[Document]:
    """What is left of documents after all filters, those that became too short left out."""
    steps = list(filters)
    for document in documents:
        kept: Document | None = document
        for step in steps:
            kept = step(kept) if kept is not None else None
        if kept is not None and len(kept.text.strip()) >= MIN_CHARS:
            yield kept
