"""Instructions that a program can verify: the form of the reply, not what it says.

In the manner of IFEval (arXiv 2311.07911): each question asks for a sentence of a form, and the
credit is whether the reply has it. Nothing that a model writes is run; JSON is parsed.
"""

import json
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Split
from archloop.evals.questions import solved
from archloop.evals.text_tasks import Question, ReplyTask
from archloop.evals.words import COLOURS, NAMES, PLACES, THINGS

Variant = Literal["num_words", "upper_case", "starts_with", "contains", "json", "repeat", "bullets"]

_LENGTHS = range(3, 12)
"""Numbers of words that a reply may be asked to have, each as likely."""


class Instruction(ReplyTask):
    """Forms that a reply must have."""

    version = 2
    category = "instructions"
    stops = ("\n\n",)
    max_new_tokens = 48

    class Config(BaseModel):
        """Which form, behind how many examples that have it."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        variant: Variant = "num_words"
        num_solved: int = Field(default=1, ge=0, le=8)

    config: Config

    @property
    def chance(self) -> float:
        """Of so many words, what replies of always one length score; nothing of other forms."""
        return 1 / len(_LENGTHS) if self.config.variant == "num_words" else 0.0

    def guesses(self, prompt: str) -> tuple[str, ...]:
        """See `ReplyTask.guesses`."""
        del prompt
        if self.config.variant != "num_words":
            return ()
        return tuple(" ".join(["word"] * length) for length in _LENGTHS)

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        return solved(self._draw, split, seed, num_examples, self.config.num_solved)

    def credit(self, reply: str, question: Question) -> float:
        return float(_holds(self.config.variant, reply.strip(), question.data))

    def is_lost(self, begun: str, question: Question) -> bool:
        """See `ReplyTask.is_lost`."""
        return _is_lost(self.config.variant, begun.strip(), question.data)

    def _draw(self, rng: np.random.Generator) -> Question:
        thing, other = (str(word) for word in rng.permutation(THINGS)[:2])
        name, place = str(rng.choice(NAMES)), str(rng.choice(PLACES))
        colour = str(rng.choice(COLOURS))
        sentence = f"{name} took the {colour} {thing} to the {place}"
        about = f"about {name}, a {colour} {thing} and the {place}"
        if self.config.variant == "num_words":
            words = [*sentence.split(), "and", "came", "back", "with", "the", other]
            num = int(rng.integers(_LENGTHS.start, _LENGTHS.stop))
            return _ask(f"exactly {num} words {about}", " ".join(words[:num]), num)
        if self.config.variant == "upper_case":
            return _ask(f"one line in capital letters {about}", sentence.upper(), None)
        if self.config.variant == "starts_with":
            opening = f"In the {place}"
            rest = f"{opening} {name} found a {colour} {thing}."
            return _ask(f'one line that starts with "{opening}" {about}', rest, opening)
        if self.config.variant == "contains":
            wanted = (thing, other, colour)
            said = f"The {thing} lay beside the {colour} {other}."
            asked = f'one line with the words "{thing}", "{other}" and "{colour}" about the {place}'
            return _ask(asked, said, wanted)
        if self.config.variant == "json":
            fields = {"name": name, "thing": thing, "place": place}
            asked = f"a JSON object with the fields name, thing and place about this: {sentence}."
            return _ask(asked, json.dumps(fields), tuple(fields.items()))
        if self.config.variant == "repeat":
            line = f"{sentence}."
            return _ask(f'this line again, unchanged: "{line}"', line, line)
        items = [str(word) for word in rng.permutation(THINGS)[:3]]
        asked = f"a list of 3 lines, each with a dash before it: {', '.join(items)}"
        return _ask(asked, "\n".join(f"- {item}" for item in items), tuple(items))


def _ask(what: str, reply: str, data: Any) -> Question:
    return Question(f"Write {what}\nReply:", (reply,), data)


def _is_lost(variant: Variant, begun: str, data: Any) -> bool:
    """Whether no reply that begins so holds, of the variants where its beginning can tell."""
    if variant == "upper_case":
        return begun != begun.upper()
    if variant == "starts_with":
        return not (begun.startswith(data) or data.startswith(begun))
    if variant == "repeat":
        return not data.startswith(begun)
    return variant == "json" and begun[:1] not in ("", "{")


def _holds(variant: Variant, reply: str, data: Any) -> bool:
    if variant == "num_words":
        return len(reply.split()) == data and "\n" not in reply
    if variant == "upper_case":
        return any(letter.isalpha() for letter in reply) and reply == reply.upper()
    if variant == "starts_with":
        return reply.startswith(data) and len(reply) > len(data)
    if variant == "contains":
        return all(word in reply for word in data)
    if variant == "repeat":
        return bool(reply == data)
    if variant == "bullets":
        return [line.strip() for line in reply.splitlines()] == [f"- {item}" for item in data]
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found == dict(data)
