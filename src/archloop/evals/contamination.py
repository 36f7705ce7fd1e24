"""Texts of evaluations, which no corpus may share: what `archloop corpus fetch` leaves out.

A corpus that holds a test's words lets a model remember the answer. Of an evaluation that draws its
questions, those of the test split at the seed and number that a run takes by itself stand here; of
one whose questions are given, all of them. Each stands with all that may follow it.
"""

from collections.abc import Iterator, Mapping

from archloop.evals import suites
from archloop.evals.base import Evaluation, Split
from archloop.evals.text_tasks import ChoiceTask, ReplyTask

ALL = 10**9
"""More questions than any set has."""


def texts(evaluations: Mapping[str, Evaluation] | None = None) -> Iterator[str]:
    """Questions with each continuation or right reply, of evaluations whose data is here.

    Args:
        evaluations: by name; those of every suite if None.
    """
    if evaluations is None:
        evaluations = {
            f"{suite}:{name}": each
            for suite in suites.SUITES
            if suite not in suites.DRAWN_LONG
            for name, each in suites.load(suite).items()
        }
    for evaluation in evaluations.values():
        if evaluation.asks_its_corpus or evaluation.missing():
            continue
        splits: tuple[Split, ...] = ("train", "test") if evaluation.is_given else ("test",)
        num = ALL if evaluation.is_given else evaluation.num_test
        for split in splits:
            if isinstance(evaluation, ChoiceTask):
                for choice in evaluation.questions(split, 0, num):
                    yield from (choice.context + following for following in choice.choices)
            if isinstance(evaluation, ReplyTask):
                for question in evaluation.questions(split, 0, num):
                    yield from (f"{question.prompt} {answer}" for answer in question.answers)
