"""The Berkeley Function Calling Leaderboard, version 4, its questions that a call answers at once.

A reply is a list of calls in Python's notation, ``[area(base=10, height=5)]``. It is parsed, never
run: names and literal arguments are compared with those that the package allows, by the rules of
BFCL's own comparison of syntax trees: texts without regard to case, spaces and punctuation, a
whole number where a fraction is expected, optional arguments present or not, several calls in any
order. Solved requests before the one that is asked come from questions that are never asked.
"""

import ast
import json
import re
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.packaged import Package, chosen
from archloop.evals.text_tasks import Question, ReplyTask

PACKAGE = Package("bfcl-eval==2026.3.23", "Apache-2.0")
Subset = Literal[
    "simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_multiple"
]
_IGNORED = re.compile(r"[ ,./\-_*^]")
OPTIONAL = ""
"""Among allowed values, that the argument may be left out."""


class _Item(NamedTuple):
    id: str
    prompt: str
    allowed: list[dict[str, dict[str, list[Any]]]]


class BFCL(ReplyTask):
    """Calls of the functions that are described."""

    category = "tools"
    licence = PACKAGE.licence
    is_given = True
    num_test = 200
    max_new_tokens = 160

    class Config(BaseModel):
        """Which questions, behind how many solved ones."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        subset: Subset = "simple_python"
        num_solved: int = Field(default=1, ge=0, le=4)

    config: Config

    def missing(self) -> str:
        """See `Evaluation.missing`."""
        return PACKAGE.missing()

    def fetch(self) -> None:
        """See `Evaluation.fetch`."""
        PACKAGE.fetch()

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        """See `ReplyTask.questions`; fewer where the package has fewer."""
        items, num_solved = self._items(), self.config.num_solved
        shown = chosen(items, "train", seed, len(items))
        rng = np.random.default_rng([1, seed])
        found = []
        for item in chosen(items, split, seed, num_examples):
            others = [each for each in shown if each.id != item.id]
            places = rng.choice(len(others), size=min(num_solved, len(others)), replace=False)
            solved = "".join(
                f"{others[int(i)].prompt} {written(others[int(i)].allowed)}\n\n" for i in places
            )
            data = json.dumps(item.allowed)
            found.append(Question(solved + item.prompt, (written(item.allowed),), data))
        return found

    def credit(self, reply: str, question: Question) -> float:
        """1 if the calls are allowed ones, each once."""
        calls = parsed(reply.strip())
        return float(calls is not None and fits(calls, json.loads(question.data)))

    def _items(self) -> list[_Item]:
        name = f"BFCL_v4_{self.config.subset}.json"
        answers = {
            line["id"]: line["ground_truth"]
            for line in PACKAGE.lines(f"bfcl_eval/data/possible_answer/{name}")
        }
        found = []
        for line in PACKAGE.lines(f"bfcl_eval/data/{name}"):
            described = "\n".join(json.dumps(each) for each in line["function"])
            asked = "\n".join(turn["content"] for turn in line["question"][0])
            prompt = f"{described}\nRequest: {asked}\nCalls:"
            allowed = answers.get(line["id"])
            if allowed and _has_answer(allowed):
                found.append(_Item(line["id"], prompt, allowed))
        return found


def _has_answer(allowed: list[dict[str, dict[str, list[Any]]]]) -> bool:
    """Whether every argument has an allowed value: a few of the package's have none."""
    return all(values for each in allowed for some in each.values() for values in some.values())


Call = tuple[str, dict[str, Any]]


def parsed(reply: str) -> list[Call] | None:
    """The calls of a reply with literal arguments given by name; None if it is anything else."""
    try:
        tree = ast.parse(reply, mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_call(node) for node in nodes]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with arguments by name")
    return ast.unparse(node.func), {
        str(each.arg): ast.literal_eval(each.value) for each in node.keywords
    }


def fits(calls: list[Call], allowed: list[dict[str, dict[str, list[Any]]]]) -> bool:
    """Whether the calls are these, in any order."""
    left = [next(iter(each.items())) for each in allowed]
    if len(calls) != len(left):
        return False
    for name, arguments in calls:
        found = [i for i, each in enumerate(left) if each[0] == name and _may(arguments, each[1])]
        if not found:
            return False
        left.pop(found[0])
    return True


def _may(arguments: dict[str, Any], allowed: dict[str, list[Any]]) -> bool:
    given = all(
        name in allowed and any(_equal(value, one) for one in allowed[name])
        for name, value in arguments.items()
    )
    return given and all(n in arguments or OPTIONAL in values for n, values in allowed.items())


def _equal(value: Any, allowed: Any) -> bool:
    if isinstance(value, str) and isinstance(allowed, str):
        return _plain(value) == _plain(allowed)
    if isinstance(value, bool) or isinstance(allowed, bool):
        return value is allowed
    if isinstance(value, dict) and isinstance(allowed, dict):
        # Inside an object, too, each field lists what is allowed.
        wrapped = {k: v if isinstance(v, list) else [v] for k, v in allowed.items()}
        return _may(value, wrapped)
    if isinstance(value, (list, tuple)) and isinstance(allowed, (list, tuple)):
        pairs = zip(value, allowed, strict=False)
        return len(value) == len(allowed) and all(_equal(a, b) for a, b in pairs)
    return bool(value == allowed)


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')


def written(allowed: list[dict[str, dict[str, list[Any]]]]) -> str:
    """A right reply: the first allowed value of each argument that is not optional."""
    calls = []
    for each in allowed:
        ((name, arguments),) = each.items()
        given = ", ".join(f"{k}={_first(v)!r}" for k, v in arguments.items() if OPTIONAL not in v)
        calls.append(f"{name}({given})")
    return f"[{', '.join(calls)}]"


def _first(values: list[Any]) -> Any:
    return _plainly(values[0])


def _plainly(value: Any) -> Any:
    """An allowed value as one value: inside an object each field lists several."""
    if isinstance(value, dict):
        lists = {k: v if isinstance(v, list) else [v] for k, v in value.items()}
        return {k: _plainly(v[0]) for k, v in lists.items() if OPTIONAL not in v}
    if isinstance(value, list):
        return [_plainly(each) for each in value]
    return value
