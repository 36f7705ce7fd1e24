"""Facts of the training text: which definition belongs to a word, and which word to a definition.

Small models know next to nothing of the world and something of what they have read. WordNet's
definitions stand in the corpus that `archloop corpus fetch` builds, ``word: definition``, so a
model that was trained on it is asked to tell a word's own definition from those of three others.
The facts asked are those of the training documents, on purpose.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from archloop.errors import UserError
from archloop.evals.base import Split
from archloop.evals.questions import drawn
from archloop.evals.text_tasks import Choice, ChoiceTask
from archloop.text import corpora
from archloop.text.corpora import Corpus, CorpusConfig

NUM_CHOICES = 4


class CorpusFacts(ChoiceTask):
    """A word and its definition, among three others."""

    category = "knowledge"
    licence = "WordNet-3.0"
    asks_its_corpus = True

    class Config(BaseModel):
        """What is asked for, and where WordNet's text lies."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        ask: Literal["definition", "word"] = "definition"
        file: str = "corpora/english/wordnet.jsonl.xz"

    config: Config

    @property
    def chance(self) -> float:
        """One of four."""
        return 1 / NUM_CHOICES

    def missing(self) -> str:
        """See `Evaluation.missing`."""
        if Path(self.config.file).is_file():
            return ""
        folder = Path(self.config.file).parent
        return f"{self.config.file} is not here; run: archloop corpus fetch --output {folder}"

    @property
    def data_digest(self) -> str:
        """See `Evaluation.data_digest`."""
        return self._corpus().digest

    def _corpus(self) -> Corpus:
        config = CorpusConfig(source="files", paths=(self.config.file,))
        return corpora.load_kept(config, Path.cwd())

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        """See `ChoiceTask.questions`.

        Raises:
            UserError: the file cannot be read, or holds too few definitions.
        """
        facts = definitions(self._corpus().train)
        if len(facts) < 10 * NUM_CHOICES:
            raise UserError(f"{self.config.file} holds {len(facts)} definitions, too few")

        def draw(rng: np.random.Generator) -> Choice:
            several = [facts[int(i)] for i in rng.choice(len(facts), NUM_CHOICES, replace=False)]
            right = int(rng.integers(NUM_CHOICES))
            word, definition = several[right]
            if self.config.ask == "definition":
                return Choice(f"{word}:", tuple(f" {said}" for _, said in several), right)
            return Choice(
                f"The word for this is one of four. {definition}. It is",
                tuple(f" {name}" for name, _ in several),
                right,
            )

        return drawn(draw, split, seed, num_examples)


def definitions(documents: list[str]) -> list[tuple[str, str]]:
    """Words that stand alone in their group of synonyms, each once, with the definition."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for line in (line for text in documents for line in text.splitlines()):
        word, colon, gloss = line.partition(": ")
        said = gloss.split(";")[0].strip()
        if not colon or "," in word or not 16 <= len(said) <= 120 or said in seen:
            continue
        seen.add(said)
        found.setdefault(word, said)
    return list(found.items())
