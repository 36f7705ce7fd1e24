"""The contract of tasks in token rows; `evaluations` has what holds for all."""

from typing import Any, ClassVar

import numpy as np
import pytest

from archloop import registry
from archloop.evals.base import IGNORE, Task, TaskInBits
from archloop.testing.contract import Contract


def rows(examples: Any) -> set[bytes]:
    """The rows of examples, to compare."""
    return {row.tobytes() for row in examples.ids_NT}


class TaskContract(Contract):
    """Tests of the evaluations that are tasks in token rows."""

    kind: ClassVar[str] = "tasks"

    @classmethod
    def plugins(cls) -> list[str]:
        """Those that are tasks in token rows."""
        names = super().plugins()
        return [name for name in names if issubclass(registry.get("tasks", name), Task)]

    @pytest.fixture
    def task(self, name: str) -> Any:
        """The task at hand."""
        return registry.get("tasks", name)()

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_shapes_and_ids(self, task: Any, split: str) -> None:
        ids_NT, targets_NT = task.examples(split, 3, 50)
        assert ids_NT.shape == targets_NT.shape
        assert ids_NT.shape[0] == 50
        assert ids_NT.dtype == targets_NT.dtype == np.int64
        assert ids_NT.min() >= 0
        assert ids_NT.max() < task.vocab_size
        asked = targets_NT[targets_NT != IGNORE]
        assert asked.min() >= 0
        assert asked.max() < task.vocab_size
        assert (targets_NT != IGNORE).any(1).all(), "an example asks nothing"

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_examples_are_a_function_of_their_arguments(self, task: Any, split: str) -> None:
        first, again = task.examples(split, 7, 20), task.examples(split, 7, 20)
        other = task.examples(split, 8, 20)
        assert np.array_equal(first.ids_NT, again.ids_NT)
        assert np.array_equal(first.targets_NT, again.targets_NT)
        assert not np.array_equal(first.ids_NT, other.ids_NT)

    def test_train_and_test_share_no_example(self, task: Any) -> None:
        if task.shares_examples:
            pytest.skip("shares its examples by design")
        # The same seed on purpose: being apart must not depend on seeds.
        assert not rows(task.examples("train", 0, 2000)) & rows(task.examples("test", 0, 2000))

    def test_examples_differ_from_each_other(self, task: Any) -> None:
        assert len(rows(task.examples("test", 0, 200))) > 190

    def test_right_answers_score_one_and_wrong_ones_zero(self, task: Any) -> None:
        _, targets_NT = task.examples("test", 0, 30)
        assert np.array_equal(task.score(targets_NT, targets_NT), np.ones(30))
        wrong_NT = (targets_NT + 1) % task.vocab_size
        assert np.array_equal(task.score(wrong_NT, targets_NT), np.zeros(30))

    def test_answers_where_nothing_is_asked_do_not_count(self, task: Any) -> None:
        _, targets_NT = task.examples("test", 0, 30)
        predictions_NT = np.where(targets_NT == IGNORE, 0, targets_NT)
        assert np.array_equal(task.score(predictions_NT, targets_NT), np.ones(30))

    def test_chance_is_what_guessing_scores(self, task: Any) -> None:
        """A guesser that knows which tokens answer at each place, and nothing about the example."""
        if isinstance(task, TaskInBits):
            pytest.skip("its chance is in bits")
        _, targets_NT = task.examples("test", 1, 4000)
        rng = np.random.default_rng(0)
        asked_NT = targets_NT != IGNORE
        predictions_NT = np.zeros_like(targets_NT)
        is_fixed_T = np.array(
            [len(np.unique(column[column != IGNORE])) == 1 for column in targets_NT.T]
        )
        answers = np.unique(targets_NT[:, ~is_fixed_T][asked_NT[:, ~is_fixed_T]])
        predictions_NT[:] = rng.choice(answers, size=targets_NT.shape)
        fixed = np.where(asked_NT, targets_NT, -1).max(0)
        predictions_NT[:, is_fixed_T] = fixed[is_fixed_T]
        scores_N = task.score(predictions_NT, targets_NT)
        error = scores_N.std() / len(scores_N) ** 0.5
        assert scores_N.mean() == pytest.approx(task.chance, abs=4 * error)

    def test_category_is_named(self, task: Any) -> None:
        assert task.category
        assert isinstance(task, Task)
