"""Problems of reasoning-gym: the contract on generators of the same form, and other versions."""

import sys
import types
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import pytest

from archloop.evals import suites
from archloop.evals.base import Evaluation
from archloop.evals.tasks import reasoning_gym
from archloop.testing import EvaluationContract
from archloop.testing.answering import Guesser


class Problems:
    """A generator: a problem is a function of its number."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, index: int) -> dict[str, Any]:
        answer = "Yes" if index % 3 else f"No, {index}"
        answer = answer if self.name == "syllogism" else f"it is {index}"
        return {"question": f"{self.name} {index}?\n", "answer": answer, "metadata": {}}

    def score_answer(self, answer: str, entry: Any) -> float:
        raise AssertionError("the library's graders may evaluate what a model writes")


@pytest.fixture(autouse=True, scope="module")
def library() -> Any:
    """The library's one function that is used, as it declares it."""
    module = types.ModuleType("reasoning_gym")
    module.create_dataset = lambda name, size, seed: Problems(name)  # type: ignore[attr-defined]
    cached = (reasoning_gym._problems, reasoning_gym._commonest_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "reasoning_gym", module)
        patch.setattr(reasoning_gym, "_found_version", lambda: reasoning_gym.VERSION)
        for each in cached:
            each.cache_clear()
        yield
    for each in cached:
        each.cache_clear()


class TestReasoningGym(EvaluationContract):
    names = ("reasoning_gym",)

    @classmethod
    def entries(cls) -> dict[str, Callable[[], Evaluation]]:
        subsets = ("chain_sum", "syllogism")
        return {k: partial(suites.make, "reasoning_gym", {"subset": k}) for k in subsets}


def test_chance_is_writing_the_commonest_answer() -> None:
    task = suites.make("reasoning_gym", {"subset": "syllogism"})
    assert task.chance == pytest.approx(2 / 3, abs=0.08)
    assert isinstance(task, reasoning_gym.ReasoningGym)
    assert task.guesses("any") == ("Yes",)
    assert suites.make("reasoning_gym", {"subset": "chain_sum"}).chance == 0


def test_a_reply_is_compared_and_never_given_to_the_library() -> None:
    task = suites.make("reasoning_gym", {"subset": "lcm"})
    assert task.run(Guesser(task, 0), limit=4).value == 0


def test_categories() -> None:
    found = {k: suites.make("reasoning_gym", {"subset": k}).category for k in reasoning_gym.SUBSETS}
    assert found["simple_equations"] == "mathematics"
    assert found["family_relationships"] == "reasoning"
    assert found["needle_haystack"] == "long context"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("", "reasoning-gym is not here; run: pip install reasoning-gym==0.1.25"),
        ("9.9", "reasoning-gym 9.9 is here and 0.1.25 is asked for; run: pip install"),
    ],
)
def test_absent_or_another_version_is_one_line(
    monkeypatch: pytest.MonkeyPatch, version: str, expected: str
) -> None:
    monkeypatch.setattr(reasoning_gym, "_found_version", lambda: version)
    task = suites.make("reasoning_gym", {})
    assert task.missing().startswith(expected)
    assert "\n" not in task.missing()
    assert task.chance == 0
    _, left_out = suites.parted(suites.load("full"))
    assert {f"reasoning_gym_{subset}" for subset in reasoning_gym.SUBSETS} <= set(left_out)


def test_the_version_is_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(reasoning_gym, "_found_version", VERSION_FUNCTION)
    assert reasoning_gym._found_version() == ""
    monkeypatch.setattr(metadata, "version", lambda name: f"{name} 1")
    assert reasoning_gym._found_version() == "reasoning-gym 1"


VERSION_FUNCTION = reasoning_gym._found_version
