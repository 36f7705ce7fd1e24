"""Function calls: of the functions that are described, the right one with the right arguments.

A call is a JSON object, ``{"name": ..., "arguments": {...}}``, and is graded by parsing it: never
run. `single` describes one function, `choose` several of which one fits, `nested` asks for an
argument that is an object. Of `none`, in half of the questions no function fits, to which ``null``
is the answer.
"""

import json
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.questions import solved
from archloop.evals.text_tasks import Question, ReplyTask
from archloop.evals.words import NAMES, PLACES, THINGS

Variant = Literal["single", "choose", "optional", "nested", "several", "none"]

_VERBS = ("send", "find", "move", "count", "paint", "sell", "clean", "store")


class FunctionCall(ReplyTask):
    """Calls of described functions."""

    version = 2
    category = "tools"
    max_new_tokens = 96

    class Config(BaseModel):
        """What must be called, behind how many solved requests."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        variant: Variant = "single"
        num_solved: int = Field(default=1, ge=0, le=8)

    config: Config

    @property
    def chance(self) -> float:
        """Of `none`, writing ``null`` always is right as often as not; a call is not guessed."""
        return 0.5 if self.config.variant == "none" else 0.0

    def guesses(self, prompt: str) -> tuple[str, ...]:
        """See `ReplyTask.guesses`."""
        del prompt
        return ("null",) if self.config.variant == "none" else ()

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        return solved(self._draw, split, seed, num_examples, self.config.num_solved)

    def credit(self, reply: str, question: Question) -> float:
        return same_json(reply, question.answers[0])

    def is_lost(self, begun: str, question: Question) -> bool:
        """See `ReplyTask.is_lost`."""
        return is_other_json(begun, question.answers[0])

    def _draw(self, rng: np.random.Generator) -> Question:
        variant = self.config.variant
        verbs = [str(verb) for verb in rng.permutation(_VERBS)[:3]]
        thing = str(rng.choice(THINGS))
        described = [_describe(f"{verb}_{thing}", variant) for verb in verbs]
        if variant not in ("choose", "none"):
            described = described[:1]
        asked = int(rng.integers(len(described)))
        number = int(rng.integers(2, 100))
        place, name = str(rng.choice(PLACES)), str(rng.choice(NAMES))
        verb = verbs[asked]
        request = f"{verb} {number} {thing}s in the {place} for {name}"
        call: Any = {
            "name": f"{verb}_{thing}",
            "arguments": _arguments(variant, number, place, name),
        }
        if variant == "optional":
            request = f"{verb} {number} {thing}s for {name}, wherever"
        if variant == "several":
            other = int(rng.integers(2, 100))
            again = {"name": call["name"], "arguments": _arguments(variant, other, place, name)}
            request += f", then {other} more"
            call = [call, again]
        if variant == "none":
            # In half of the requests of this variant the wanted function is listed after all;
            # otherwise ``null`` would be right without reading the list.
            fits = bool(rng.integers(2))
            del described[(asked + 1) % len(described) if fits else asked]
            call = call if fits else None
        text = "\n".join(json.dumps(each) for each in described)
        return Question(f"{text}\nRequest: {request}\nCall:", (json.dumps(call),))


def same_json(reply: str, answer: str) -> float:
    """1 if a reply is JSON of the answer's value, 0 if it is another or none."""
    try:
        found = json.loads(reply.strip())
    except (ValueError, RecursionError):
        return 0.0
    return float(_is_same(found, json.loads(answer)))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same; Python itself takes true for 1, and false for 0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def is_other_json(begun: str, answer: str) -> bool:
    """Whether text that begins so is no JSON of the answer's kind: an object, a list, null."""
    return begun.lstrip()[:1] not in ("", answer[0])


def _describe(name: str, variant: Variant) -> dict[str, Any]:
    """A function's JSON schema."""
    properties: dict[str, Any] = {
        "number": {"type": "integer"},
        "place": {"type": "string"},
        "for": {"type": "string"},
    }
    required = ["number", "for"] if variant == "optional" else list(properties)
    if variant == "nested":
        properties = {
            "number": {"type": "integer"},
            "where": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "for": {"type": "string"}},
            },
        }
        required = ["number", "where"]
    return {"name": name, "parameters": {"properties": properties, "required": required}}


def _arguments(variant: Variant, number: int, place: str, name: str) -> dict[str, Any]:
    if variant == "nested":
        return {"number": number, "where": {"place": place, "for": name}}
    if variant == "optional":
        return {"number": number, "for": name}
    return {"number": number, "place": place, "for": name}
