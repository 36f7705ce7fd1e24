"""Bits per byte of held-out text, asked of any model with a tokenizer (`evals.text_pieces`)."""

from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.text_pieces import PiecesInBits
from archloop.text.corpora import CorpusConfig


class BitsPerByte(PiecesInBits):
    """Compression of real text."""

    class Config(BaseModel):
        """Which text, and in pieces of how many characters; paths start at the working folder."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        corpus: CorpusConfig = CorpusConfig()
        num_chars: int = Field(default=2048, ge=16)

    config: Config
