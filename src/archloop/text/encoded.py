"""A corpus as token ids, made once for each corpus and tokenizer and kept in the user's cache.

Shape suffixes: T tokens.
"""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.files import default_cache_dir, read_checked, write_checked
from archloop.text.corpora import Corpus
from archloop.text.tokenizers import Tokenizer


class Encoded(NamedTuple):
    """Token ids of a corpus, by side."""

    train_T: NDArray[np.int32]
    heldout_T: NDArray[np.int32]


def encode(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path | None = None) -> Encoded:
    """Token ids of all documents, each ended by the end of text; damaged cache files are replaced.

    Raises:
        OSError: the cache cannot be written.
    """
    folder = (cache_dir or default_cache_dir()) / "tokens"
    # Named by the tokenizer too: another version of its library may merge otherwise.
    merges = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
    name = f"{corpus.digest[:16]}-{merges[:16]}"
    return Encoded(
        _tokens(folder / f"{name}-train", tokenizer, corpus.train),
        _tokens(folder / f"{name}-heldout", tokenizer, corpus.heldout),
    )


def _tokens(file: Path, tokenizer: Tokenizer, documents: list[str]) -> NDArray[np.int32]:
    content = read_checked(file)
    if content is not None:
        cached: NDArray[np.int32] = np.load(io.BytesIO(content), allow_pickle=False)
        return cached
    tokens_T = tokenizer.encode_documents(documents)
    buffer = io.BytesIO()
    np.save(buffer, tokens_T, allow_pickle=False)
    write_checked(file, buffer.getvalue())
    return tokens_T
