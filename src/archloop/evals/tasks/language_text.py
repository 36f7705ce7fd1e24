"""Bits per byte of held-out text in twelve languages beside English, each a score of its own.

The texts are translations of one program's help, so that the languages say the same things. They
are fetched once by ``archloop corpus fetch languages``; where that was not done, nothing is asked.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.text_pieces import PiecesInBits
from archloop.text.corpora import CorpusConfig


class LanguageText(PiecesInBits):
    """Compression of text in one language."""

    category = "languages"
    licence = "MPL-2.0"

    class Config(BaseModel):
        """Which language, as its source is named, and where the corpus lies."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        language: str = Field(default="de", pattern="^[a-z]{2}(-[a-z]{2})?$")
        folder: str = "corpora/languages"
        num_chars: int = Field(default=1024, ge=16)

    config: Config

    @property
    def corpus(self) -> CorpusConfig:
        return CorpusConfig(source="files", paths=(str(self._file),))

    def missing(self) -> str:
        if self._file.is_file():
            return ""
        return f"{self._file} is not here; run: archloop corpus fetch languages --output " + (
            self.config.folder
        )

    @property
    def _file(self) -> Path:
        return Path(self.config.folder) / f"help_{self.config.language}.jsonl.xz"
