"""Byte-level BPE, trained once per corpus and vocabulary size and kept on disk.

Every byte string has tokens, and every token is a known number of bytes, so that losses of
different vocabularies compare as bits per byte.

Shape suffixes: T tokens, V vocabulary.
"""

from collections.abc import Iterable
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


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: ids run from 0 to this, exclusive.
        end_of_text: id that ends a document.
        num_bytes_V: bytes of text that each token stands for; 0 for the end of text.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self.vocab_size = backend.get_vocab_size()
        tokens = backend.get_vocab()
        self.end_of_text = tokens[END_OF_TEXT]
        # In a byte-level vocabulary each character of a token's name is one byte.
        lengths = [len(token) for token in sorted(tokens, key=tokens.__getitem__)]
        lengths[self.end_of_text] = 0
        self.num_bytes_V = np.array(lengths, dtype=np.int64)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids of a text, (T,)."""
        return np.array(self._backend.encode(text).ids, dtype=np.int32)

    def encode_documents(self, documents: list[str]) -> NDArray[np.int32]:
        """Token ids of all documents, each ended by `end_of_text`, (T,)."""
        end = np.array([self.end_of_text], dtype=np.int32)
        parts = []
        for encoding in self._backend.encode_batch(documents):
            parts += [np.array(encoding.ids, dtype=np.int32), end]
        return np.concatenate(parts) if parts else end[:0]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids."""
        return str(self._backend.decode(list(ids)))

    def to_json(self) -> str:
        """The tokenizer in the format of Hugging Face's ``tokenizer.json``."""
        return str(self._backend.to_str())


def train(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; equal documents give an equal tokenizer.

    Raises:
        UserError: the vocabulary has no room for all bytes, or the text does not fill it.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size={vocab_size} has no room for all bytes and the end of text; "
            f"give at least {MIN_VOCAB_SIZE}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    if backend.get_vocab_size() < vocab_size:
        raise UserError(
            f"the corpus fills only {backend.get_vocab_size()} of vocab_size={vocab_size}; "
            "give more text or a smaller vocab_size"
        )
    return Tokenizer(backend)


def cached(corpus: Corpus, vocab_size: int, cache_dir: Path | None = None) -> Tokenizer:
    """The tokenizer of a corpus, from the cache or trained on its training documents.

    A damaged cache file is replaced. Raises as `train`.
    """
    folder = (cache_dir or default_cache_dir()) / "tokenizers"
    file = folder / f"{corpus.digest[:16]}-{vocab_size}.bpe"
    content = read_checked(file)
    if content is None:
        tokenizer = train(corpus.train, vocab_size)
        write_checked(file, tokenizer.to_json().encode())
        return tokenizer
    return Tokenizer(tokenizers.Tokenizer.from_str(content.decode()))
