"""Bits per byte of pieces of real text: what evaluations that ask for it share.

The text is cut into pieces of equal length in characters, so that models of different tokenizers
are asked about the same bytes. Every token after the tokens that begin a text is predicted; where a
tokenizer has none, the first token of a piece is given for nothing, and its bytes are not counted.
A subclass says by its `Config` which text, and in pieces of how many characters (`num_chars`).
"""

import math
from pathlib import Path

import numpy as np

from archloop.errors import UserError
from archloop.evals.base import Grades, Split
from archloop.evals.bits_per_byte import InBits
from archloop.evals.text_tasks import codec_of
from archloop.evals.verbs import Model
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

    def pieces(self, split: Split, seed: int, num_examples: int) -> list[str]:
        """Pieces of the held-out documents (of the others for ``train``), drawn evenly.

        Raises:
            UserError: the corpus cannot be read, or holds fewer than two whole pieces.
        """
        corpus = corpora.load(self.corpus, Path.cwd())
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
        free = [0 if model.start else len(codec.decode(row[:1]).encode()) for row in rows]
        logs = model.loglikelihood_rolling(rows)
        # What begins a text has no bytes; of several such tokens only the last predicts text.
        skipped = max(0, len(model.start) - 1)
        bits_N = np.array([-row[skipped:].sum() / math.log(2) for row in logs])
        bytes_N = np.array(
            [len(p.encode()) - less for p, less in zip(pieces, free, strict=True)], dtype=float
        )
        return Grades(bits_N, bytes_N)
