"""Byte-level BPE, trained once per corpus and vocabulary size and kept on disk.

Every byte string has tokens, and every token is a known number of bytes, so that losses of
different vocabularies compare as bits per byte.

Shape suffixes: T tokens, V vocabulary.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from archloop.errors import UserError
from archloop.files import default_cache_dir, read_checked, write_checked
from archloop.text.corpora import Corpus

END_OF_TEXT = "<|end_of_text|>"
MIN_VOCAB_SIZE = 257
"""All bytes, and the end of text."""
MAX_WORD_CHARS = 4096
"""Training cuts longer words: merging takes time that grows with the square of a word's length."""
MAX_TRAINING_CHARS = 2**28
"""Training reads documents up to this many characters in all; more text hardly moves the merges."""
PROGRESS_CHARS = 2**25
"""From this much text on, training shows its progress on a terminal."""

_BATCH_DOCUMENTS = 256
_LONG_STRETCH = re.compile(rf"\S{{{MAX_WORD_CHARS}}}|\s{{{MAX_WORD_CHARS}}}")


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: ids run from 0 to this, exclusive.
        end_of_text: id that ends a document.
        num_bytes_V: bytes of text that each token stands for; 0 for the end of text.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        # Text that happens to hold the marker is text, with as many bytes as it has.
        backend.encode_special_tokens = True
        self.vocab_size = backend.get_vocab_size()
        tokens = backend.get_vocab()
        self.end_of_text = tokens[END_OF_TEXT]
        # In a byte-level vocabulary each character of a token's name is one byte.
        lengths = [len(token) for token in sorted(tokens, key=tokens.__getitem__)]
        for special in backend.get_added_tokens_decoder():
            lengths[special] = 0
        self.num_bytes_V = np.array(lengths, dtype=np.int64)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids of a text, (T,)."""
        return np.array(self._backend.encode(text).ids, dtype=np.int32)

    def encode_documents(self, documents: list[str]) -> NDArray[np.int32]:
        """Token ids of all documents, each ended by `end_of_text`, (T,)."""
        end = np.array([self.end_of_text], dtype=np.int32)
        parts = []
        # In slices, since an encoding takes many times the memory of its ids.
        for start in range(0, len(documents), _BATCH_DOCUMENTS):
            batch = documents[start : start + _BATCH_DOCUMENTS]
            for encoding in self._backend.encode_batch_fast(batch):
                parts += [np.array(encoding.ids, dtype=np.int32), end]
        return np.concatenate(parts) if parts else end[:0]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids."""
        return str(self._backend.decode(list(ids)))

    def to_json(self) -> str:
        """The tokenizer in the format of Hugging Face's ``tokenizer.json``."""
        return str(self._backend.to_str())


def from_json(text: str) -> Tokenizer:
    """A tokenizer of ours, from what `Tokenizer.to_json` gave.

    Raises:
        UserError: it is no tokenizer, or has no token that ends a document.
    """
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises plain Exception.
        raise UserError(f"no tokenizer: {error}") from error
    if backend.token_to_id(END_OF_TEXT) is None:
        raise UserError(f"a tokenizer without {END_OF_TEXT}; take one that archloop made")
    return Tokenizer(backend)


def train(documents: Sequence[str], vocab_size: int, more_special: Sequence[str] = ()) -> Tokenizer:
    """Train a byte-level BPE; equal documents give an equal tokenizer.

    Words are cut at `MAX_WORD_CHARS`, and no more than `MAX_TRAINING_CHARS` are read.

    Args:
        documents: to train on.
        vocab_size: of all tokens.
        more_special: special tokens besides the end of text, which no text gives.

    Raises:
        UserError: the vocabulary has no room for all bytes and special tokens, or the text does
            not fill it.
    """
    least = MIN_VOCAB_SIZE + len(more_special)
    if vocab_size < least:
        others = f", and {len(more_special)} special tokens more" if more_special else ""
        raise UserError(
            f"vocab_size={vocab_size} has no room for all bytes and the end of text{others}; "
            f"give at least {least}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *more_special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty() and sum(map(len, documents)) > PROGRESS_CHARS,
    )
    backend.train_from_iterator(_training_text(documents), trainer)
    if backend.get_vocab_size() < vocab_size:
        raise UserError(
            f"the corpus fills only {backend.get_vocab_size()} of vocab_size={vocab_size}; "
            "give more text or a smaller vocab_size"
        )
    return Tokenizer(backend)


def _training_text(documents: Iterable[str]) -> Iterator[str]:
    """The documents that training reads, cut inside stretches that are too long for it."""
    size = 0
    for document in documents:
        if size > MAX_TRAINING_CHARS:
            return
        size += len(document)
        start = 0
        for stretch in _LONG_STRETCH.finditer(document):
            yield document[start : stretch.end()]
            start = stretch.end()
        yield document[start:]


def cached(
    corpus: Corpus,
    vocab_size: int,
    cache_dir: Path | None = None,
    more_special: Sequence[str] = (),
) -> Tokenizer:
    """The tokenizer of a corpus, from the cache or trained on its training documents.

    A damaged cache file is replaced. Raises as `train`.
    """
    folder = (cache_dir or default_cache_dir()) / "tokenizers"
    name = "-".join([corpus.digest[:16], str(vocab_size), *map(_plain, more_special)])
    file = folder / f"{name}.bpe"
    content = read_checked(file)
    if content is None:
        tokenizer = train(corpus.train, vocab_size, more_special)
        write_checked(file, tokenizer.to_json().encode())
        return tokenizer
    return Tokenizer(tokenizers.Tokenizer.from_str(content.decode()))


def _plain(token: str) -> str:
    """A special token's letters, for a file's name."""
    return re.sub(r"\W", "", token)
