"""Texts of evaluations, which no corpus may share: what `archloop corpus fetch` leaves out.

A corpus that holds a test's words lets a model remember the answer. Questions of the test split, at
the seed and number that a run takes by itself, stand here with all that may follow them.
"""

from collections.abc import Iterator, Mapping

from archloop.evals import suites
from archloop.evals.base import Evaluation
from archloop.evals.text_tasks import ChoiceTask, ReplyTask


def texts(evaluations: Mapping[str, Evaluation] | None = None) -> Iterator[str]:
    """Questions with each continuation or right reply, of evaluations whose data is here.

    Args:
        evaluations: by name; those of every suite if None.
    """
    if evaluations is None:
        evaluations = {
            f"{suite}:{name}": each
            for suite in suites.SUITES
            for name, each in suites.load(suite).items()
        }
    for evaluation in evaluations.values():
        if evaluation.missing():
            continue
        if isinstance(evaluation, ChoiceTask):
            for choice in evaluation.questions("test", 0, evaluation.num_test):
                yield from (choice.context + following for following in choice.choices)
        if isinstance(evaluation, ReplyTask):
            for question in evaluation.questions("test", 0, evaluation.num_test):
                yield from (f"{question.prompt} {answer}" for answer in question.answers)
