"""Bits per byte of long documents as a function of position: a score for each quarter.

A model that uses what stands far back predicts the last quarter of a long document better than the
first; one that does not, predicts all quarters alike. Pieces are cut inside one document each.
"""

import math
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.errors import UserError
from archloop.evals.base import Grades, Split
from archloop.evals.text_pieces import PiecesInBits, given
from archloop.evals.text_tasks import codec_of
from archloop.evals.verbs import Model
from archloop.text import corpora
from archloop.text.corpora import CorpusConfig

NUM_QUARTERS = 4


class TextPosition(PiecesInBits):
    """Compression of one quarter of long pieces, after the quarters before it."""

    num_test = 32

    class Config(BaseModel):
        """Which quarter, of which text, in pieces of how many characters."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        quarter: int = Field(default=4, ge=1, le=NUM_QUARTERS)
        corpus: CorpusConfig = CorpusConfig()
        num_chars: int = Field(default=8192, ge=64)

    config: Config

    @property
    def examples_shared(self) -> str:
        """All quarters are of the same pieces."""
        settings = self.config.model_dump_json(exclude={"quarter"})
        return f"{self.name} {settings}"

    def pieces(self, split: Split, seed: int, num_examples: int) -> list[str]:
        """Pieces of documents that are long enough.

        Raises:
            UserError: the corpus cannot be read, or has fewer than two such pieces.
        """
        size, corpus = self.config.num_chars, corpora.load_kept(self.corpus, Path.cwd())
        found = [
            text[start : start + size]
            for text in (corpus.heldout if split == "test" else corpus.train)
            for start in range(0, len(text) - size + 1, size)
        ]
        if len(found) < 2:
            raise UserError(
                f"no two pieces of {size} characters stand in the text's documents; give longer "
                "ones or a smaller num_chars"
            )
        chosen = np.random.default_rng(seed).permutation(len(found))[:num_examples]
        return [found[int(place)] for place in np.sort(chosen)]

    def grade(self, model: Model, split: Split, seed: int, num_examples: int) -> Grades:
        """Bits and bytes of the quarter in each piece."""
        codec, pieces = codec_of(model), self.pieces(split, seed, num_examples)
        rows = [[*model.start, *codec.encode(piece)] for piece in pieces]
        logs = model.loglikelihood_rolling(rows)
        bits, sizes = [], []
        for piece, row, log in zip(pieces, rows, logs, strict=True):
            cuts = [self._chars(piece, q) for q in (self.config.quarter - 1, self.config.quarter)]
            # A token that reaches over a cut belongs to the part in which it starts, or ends.
            first, last = (len(model.start) + len(codec.encode(piece[:cut])) for cut in cuts)
            num_given, given_bytes = given(model, codec, row)
            bits.append(-log[max(first, num_given) - 1 : last - 1].sum() / math.log(2))
            less = given_bytes if cuts[0] == 0 else 0
            sizes.append(len(piece[cuts[0] : cuts[1]].encode()) - less)
        return Grades(np.array(bits), np.array(sizes, dtype=float))

    @staticmethod
    def _chars(piece: str, quarter: int) -> int:
        return len(piece) * quarter // NUM_QUARTERS
