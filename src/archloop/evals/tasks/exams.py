"""School examinations in sixteen languages: the letter of the right option.

EXAMS (arXiv 2011.03080), as OpenAI's `evals` package carries it. The score of a language has the
chance that its own numbers of options give.
"""

from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.packaged import Lettered, Package, chosen, lettered, part
from archloop.evals.text_tasks import Choice, ChoiceTask

LANGUAGES = (
    *("albanian", "arabic", "bulgarian", "croatian", "french", "german", "hungarian", "italian"),
    *("lithuanian", "macedonian", "polish", "portuguese", "serbian", "spanish", "turkish"),
    "vietnamese",
)
PACKAGE = Package("evals==3.0.1.post1", "CC-BY-SA-4.0")


class Exams(ChoiceTask):
    """Multiple choice in one language."""

    category = "languages"
    licence = PACKAGE.licence
    is_given = True

    class Config(BaseModel):
        """Which language."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        language: str = Field(default="german", pattern=f"^({'|'.join(LANGUAGES)})$")

    config: Config

    @property
    def chance(self) -> float:
        """Mean over what is asked; one of four, as most have, where the package is not here."""
        if self.missing():
            return 0.25
        asked = part(self._questions(), "test")
        return sum(1 / len(question.options) for question in asked) / len(asked)

    def missing(self) -> str:
        """See `Evaluation.missing`."""
        return PACKAGE.missing()

    def fetch(self) -> None:
        """See `Evaluation.fetch`."""
        PACKAGE.fetch()

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        """See `ChoiceTask.questions`; fewer where the language has fewer."""
        letters = tuple(f" {chr(65 + index)}" for index in range(26))
        return [
            Choice(f"{q.asked}\n{q.listed}\nAnswer:", letters[: len(q.options)], q.right)
            for q in chosen(self._questions(), split, seed, num_examples)
        ]

    def _questions(self) -> list[Lettered]:
        member = f"evals/registry/data/{self.config.language}-exams-qa/samples.jsonl"
        found = []
        for line in PACKAGE.lines(member):
            text = line["input"][-1]["content"].strip().removesuffix("Answer:")
            found.append(lettered(text, line["ideal"]))
        return [question for question in found if question is not None]
