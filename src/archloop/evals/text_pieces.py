"""Bits per byte of pieces of real text: what evaluations that ask for it share.

The text is cut into pieces of equal length in characters, so that models of different tokenizers
are asked about the same bytes. Every token after the tokens that begin a text is predicted; where a
tokenizer has none, the first token of a piece is given for nothing, and its bytes are not counted.
Where that token is a part of a character, so are those that complete it, since a part has no text.
A subclass says by its `Config` which text, and in pieces of how many characters (`num_chars`).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from archloop.errors import UserError
from archloop.evals.base import Grades, Split
from archloop.evals.bits_per_byte import InBits
from archloop.evals.text_tasks import codec_of
from archloop.evals.verbs import Model, TextCodec
from archloop.text import corpora
from archloop.text.corpora import CorpusConfig


class PiecesInBits(InBits):
    """Compression of pieces of text."""

    num_test = 128

    @property
    def corpus(self) -> CorpusConfig:
        """Where the text comes from."""
        found: CorpusConfig = self.config.corpus
        return found

    @property
    def data_digest(self) -> str:
        """See `Evaluation.data_digest`."""
        return corpora.load_kept(self.corpus, Path.cwd()).digest

    def pieces(self, split: Split, seed: int, num_examples: int) -> list[str]:
        """Pieces of the held-out documents (of the others for ``train``), drawn evenly.

        Raises:
            UserError: the corpus cannot be read, or holds fewer than two whole pieces.
        """
        corpus = corpora.load_kept(self.corpus, Path.cwd())
        text = "\n\n".join(corpus.heldout if split == "test" else corpus.train)
        num, size = len(text) // self.config.num_chars, self.config.num_chars
        if num < 2:
            raise UserError(
                f"the text has {len(text)} characters, fewer than two pieces of {size}; give more "
                "text or a smaller num_chars"
            )
        chosen = np.random.default_rng(seed).permutation(num)[:num_examples]
        return [text[place * size : (place + 1) * size] for place in np.sort(chosen)]

    def grade(self, model: Model, split: Split, seed: int, num_examples: int) -> Grades:
        codec = codec_of(model)
        pieces = self.pieces(split, seed, num_examples)
        rows = [[*model.start, *codec.encode(piece)] for piece in pieces]
        logs = model.loglikelihood_rolling(rows)
        bits, sizes = [], []
        for piece, row, log in zip(pieces, rows, logs, strict=True):
            num_given, given_bytes = given(model, codec, row)
            # The first number of a row's log is of its second token.
            bits.append(-log[num_given - 1 :].sum() / math.log(2))
            sizes.append(len(piece.encode()) - given_bytes)
        return Grades(np.array(bits), np.array(sizes, dtype=float))


def given(model: Model, codec: TextCodec, row: Sequence[int]) -> tuple[int, int]:
    """Tokens of a row that are not predicted, at least one, and the bytes of text in them."""
    if model.start:
        return len(model.start), 0
    # No character has more than four bytes, and so none is of more tokens.
    ends = range(1, min(4, len(row)) + 1)
    texts = {end: codec.decode(row[:end]) for end in ends}
    num = next((end for end in ends if "\ufffd" not in texts[end]), ends[-1])
    return num, len(texts[num].encode())
