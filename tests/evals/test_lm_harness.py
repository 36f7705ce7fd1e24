"""lm-evaluation-harness both ways, with its two classes as they are, or as it declares them."""

import dataclasses
import sys
import types
from typing import Any

import numpy as np
import pytest

from archloop.errors import UserError
from archloop.evals import suites
from archloop.evals.lm_harness import FromLM, as_lm
from archloop.evals.verbs import Likelihood
from archloop.testing.answering import Answering, Guesser, Oracle


@dataclasses.dataclass
class Instance:
    """As `lm_eval.api.instance.Instance`: what `args` gives is what a model reads."""

    request_type: str
    doc: dict[str, Any]
    arguments: tuple[Any, ...]
    idx: int
    metadata: tuple[Any, ...] = ()

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@pytest.fixture(autouse=True)
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, or its two classes where it is not installed."""
    try:
        import lm_eval.api.instance
        import lm_eval.api.model  # noqa: F401
    except ImportError:
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.instance", "lm_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        modules = sys.modules
        modules["lm_eval"].api = modules["lm_eval.api"]  # type: ignore[attr-defined]
        for name, part in (("instance", {"Instance": Instance}), ("model", {"LM": object})):
            module = modules[f"lm_eval.api.{name}"]
            setattr(modules["lm_eval.api"], name, module)
            vars(module).update(part)


class Letters(Answering):
    """A token costs a nat for each time that it stood before."""

    def logs(self, row: Any) -> Any:
        return -np.array([list(row[:i]).count(row[i]) for i in range(1, len(row))], dtype=float)

    def loglikelihood(self, requests: Any) -> Any:
        return [
            Likelihood(
                float(self.logs([*r.prefix, *r.continuation])[-len(r.continuation) :].sum()), True
            )
            for r in requests
        ]

    def reply(self, request: Any) -> str:
        return self.codec.decode(request.ids[1:])[::-1][: request.max_new_tokens]


def ask(kind: str, *arguments: Any) -> list[Any]:
    lm = as_lm(Letters())
    found = getattr(lm, kind)([Instance(kind, {}, each, 0) for each in arguments])
    assert len(found) == len(arguments)
    return list(found)


def test_a_model_of_ours_answers_the_harness() -> None:
    assert ask("loglikelihood", ("ab", "ab"), ("ab", "cd"), ("", "aa")) == [
        (-2.0, True),
        (0.0, True),
        (-1.0, True),
    ]
    assert ask("loglikelihood_rolling", ("aaa",), ("abc",)) == [-3.0, 0.0]
    assert ask("generate_until", ("abc", {"until": "\n", "max_gen_toks": 2}), ("ab", {})) == [
        "cb",
        "ba",
    ]


def test_a_space_at_the_end_of_a_context_belongs_to_what_follows() -> None:
    # The only space of "a b" is the continuation's: nothing stood before it.
    assert ask("loglikelihood", ("a ", "b"), ("a", " b")) == [(0.0, True), (0.0, True)]
    assert ask("loglikelihood", ("a a ", "b")) == [(-1.0, True)]


@pytest.mark.parametrize("name", ["facts_capital", "agreement_de", "addition", "bits_per_byte"])
def test_scores_are_the_same_through_the_harness(name: str) -> None:
    (evaluation,) = suites.load("full", [name]).values()
    if evaluation.verb == "loglikelihood_rolling":
        with pytest.raises(UserError, match="one value for a text"):
            evaluation.run(FromLM(as_lm(Oracle(evaluation, 0))), limit=8)
        return
    for model in (Oracle(evaluation, 0), Guesser(evaluation, 0)):
        straight = evaluation.run(model, limit=100)
        again = Oracle(evaluation, 0) if isinstance(model, Oracle) else Guesser(evaluation, 0)
        assert evaluation.run(FromLM(as_lm(again)), limit=100) == straight


def test_what_the_harness_cannot_be_asked_is_said() -> None:
    with pytest.raises(UserError, match="in text"):
        FromLM(as_lm(Letters())).predict(np.zeros((1, 2), np.int64), np.ones((1, 2), np.bool_))


def test_without_the_harness_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    with pytest.raises(UserError, match=r"archloop\[evals\]"):
        as_lm(Letters())
