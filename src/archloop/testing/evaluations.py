"""The contract of evaluations, by whichever verb they ask."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from archloop import registry
from archloop.evals.base import IGNORE, Evaluation, Task, TaskInBits
from archloop.evals.text_tasks import ChoiceTask, ReplyTask
from archloop.testing.answering import NUM, Guesser, Oracle
from archloop.testing.contract import Contract


class EvaluationContract(Contract):
    """Tests of evaluations."""

    kind: ClassVar[str] = "tasks"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once for each entry."""
        super().pytest_generate_tests(metafunc)
        if "evaluation" in metafunc.fixturenames:
            entries = self.entries()
            metafunc.parametrize(
                "evaluation",
                list(entries.values()),
                ids=list(entries),
                indirect=True,
                scope="class",
            )

    @classmethod
    def entries(cls) -> dict[str, Callable[[], Evaluation]]:
        """What to test, by a name for each; by default every plug-in with its own settings."""
        return {name: registry.get("tasks", name) for name in cls.plugins()}

    @pytest.fixture(scope="class")
    @classmethod
    def evaluation(cls, request: pytest.FixtureRequest) -> Any:
        """The evaluation at hand; one whose data was not fetched is passed over."""
        evaluation = request.param()
        if evaluation.missing():
            pytest.skip(evaluation.missing())
        return evaluation

    @pytest.fixture(scope="class")
    @classmethod
    def answered(cls, evaluation: Any) -> tuple[Oracle, Any]:
        """Who knows every answer, and the score of what it said: one run for all that ask of it."""
        oracle = Oracle(evaluation, 5)
        return oracle, evaluation.run(oracle, seed=5, limit=NUM)

    @pytest.fixture(scope="class")
    @classmethod
    def guessed(cls, evaluation: Any) -> Any:
        """The score of who guesses."""
        return evaluation.run(Guesser(evaluation, 0), seed=5, limit=NUM)

    def test_a_perfect_oracle_scores_perfect(self, answered: Any) -> None:
        _, score = answered
        assert score.value == pytest.approx(score.perfect)
        assert score.normalized == pytest.approx(1.0)

    def test_a_guesser_scores_chance_within_its_error(self, evaluation: Any, guessed: Any) -> None:
        # A chance of nothing at all may still be met by luck.
        slack = 0.05 if isinstance(evaluation, ReplyTask) else 0.0
        error = 4 * guessed.standard_error + slack
        assert guessed.value == pytest.approx(guessed.chance, abs=error)

    def test_it_asks_by_its_own_verb_alone(self, evaluation: Any, answered: Any) -> None:
        oracle, _ = answered
        assert oracle.used == {evaluation.verb}

    def test_more_examples_shrink_the_error(self, evaluation: Any, guessed: Any) -> None:
        few = evaluation.run(Guesser(evaluation, 0), seed=5, limit=50)
        assert guessed.num_examples <= NUM
        assert guessed.standard_error <= few.standard_error * 1.05

    def test_it_says_what_it_is(self, evaluation: Any) -> None:
        assert evaluation.category
        assert evaluation.licence
        assert evaluation.version >= 1
        assert evaluation.chance != evaluation.perfect

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_questions_are_a_function_of_their_arguments(self, evaluation: Any, split: Any) -> None:
        if not isinstance(evaluation, (ChoiceTask, ReplyTask)):
            pytest.skip("asks no questions in text")
        first = evaluation.questions(split, 7, 30)
        assert first == evaluation.questions(split, 7, 30)
        assert first != evaluation.questions(split, 8, 30)
        assert len(first) == 30

    def test_no_test_question_is_one_of_training(self, evaluation: Any) -> None:
        if not isinstance(evaluation, (ChoiceTask, ReplyTask)):
            pytest.skip("asks no questions in text")
        train, test = (set(evaluation.questions(split, 0, 150)) for split in ("train", "test"))
        assert not train & test

    def test_only_replies_that_earn_nothing_are_lost(self, evaluation: Any) -> None:
        """However a right reply begins it may go on; what is lost stays worth nothing."""
        if not isinstance(evaluation, ReplyTask):
            pytest.skip("asks for no reply")
        for question in evaluation.questions("test", 3, 20):
            answer = question.answers[0]
            for end in range(len(answer) + 1):
                for begun in (answer[:end], f" {answer[:end]} "):
                    assert not evaluation.is_lost(begun, question), begun
            for begun in ("x", "no", f"~{answer}", f"{answer}~", answer[1:], answer.lower()):
                if evaluation.is_lost(begun, question):
                    for end in range(len(answer) + 1):
                        assert not evaluation.credit(begun + answer[end:], question), begun

    def test_answers_scored_in_bits_stand_in_the_rows(self, evaluation: Any) -> None:
        if not isinstance(evaluation, TaskInBits):
            pytest.skip("is not scored in bits")
        for split in ("train", "test"):
            ids_NT, targets_NT = evaluation.examples(split, 0, 50)
            asked_NT = targets_NT[:, :-1] != IGNORE
            assert np.array_equal(targets_NT[:, :-1][asked_NT], ids_NT[:, 1:][asked_NT])

    def test_longer_rows_are_the_same_task(self, evaluation: Any) -> None:
        if not isinstance(evaluation, Task):
            pytest.skip("has no rows")
        longer = evaluation.at_length(4)
        assert longer.vocab_size == evaluation.vocab_size
        short_T, long_T = (
            task.examples("test", 0, 4).ids_NT.shape[1] for task in (evaluation, longer)
        )
        assert long_T == pytest.approx(4 * short_T, abs=4)
