"""Needles in a haystack: numbers that a long text mentions for a word, to be written down again.

RULER's retrieval tasks (arXiv 2404.06654, section 3.1), in text of our own: one needle among
filler or among other needles, several values of one word, several words asked at once; its
aggregation tasks, the words that a long list holds most often; and those of `evals.haystacks`. A
haystack has a length in characters, so that tokenizers compare, or one in tokens of the model that
is asked, as contexts are counted.

Of a reply so many answers count as are asked for, the first ones. If all counted, a reply that only
goes on with the text would name the frequent words, and one that lists every number the right one.
"""

import re
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.errors import UserError
from archloop.evals.base import Split
from archloop.evals.haystacks import HAYSTACKS
from archloop.evals.questions import drawn
from archloop.evals.text_tasks import Question, ReplyTask, codec_of
from archloop.evals.verbs import Model
from archloop.evals.words import FILLER, PLACES, THINGS

Variant = Literal[
    "single",
    "multi_key",
    "multi_value",
    "multi_query",
    "common_words",
    "frequent_words",
    "single_prose",
    "single_code",
    "all_keys",
    "all_codes",
    "tracking",
    "question",
]
_NUMBER = r"(?<!\d)\d{4}(?!\d)"
_CODE = r"(?<![0-9a-f])[0-9a-f]{24}(?![0-9a-f])"
_FORMS: dict[Variant, str] = {
    "single_code": _CODE,
    "all_codes": _CODE,
    "tracking": r"\b[A-Z]{5}\b",
    "question": rf"\b(?:{'|'.join(PLACES)})\b",
}
"""What an answer looks like in a reply; of all others but the words of a list, a number."""
_LISTS: tuple[Variant, ...] = ("common_words", "frequent_words")
_NEAR = 0.9
"""Share of a length in tokens that the longest prompt must fill."""
_TRIES = 8


class Needle(ReplyTask):
    """Retrieval from a long text; the credit is the share of the needles that the reply gives."""

    version = 2
    category = "long context"
    max_new_tokens = 48
    num_test = 128

    class Config(BaseModel):
        """What is hidden, and in how many characters."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        variant: Variant = "single"
        num_chars: int = Field(default=2000, ge=400, le=2**20)
        num_tokens: int | None = Field(default=None, ge=512, le=2**18)
        """Of the prompt and its reply, in place of `num_chars`: so many of the asked model's tokens
        at most. Without a model, as where questions are packed, each character counts as one."""

    config: Config

    def credit(self, reply: str, question: Question) -> float:
        wanted = question.data
        given = _answers(self.config.variant, reply)[: len(wanted)]
        return len(set(given).intersection(wanted)) / len(wanted)

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        if (draw := HAYSTACKS.get(self.config.variant)) is not None:
            return drawn(lambda rng: draw(rng, self._num_chars), split, seed, num_examples)
        words = self.config.variant in _LISTS
        return drawn(self._words if words else self._needles, split, seed, num_examples)

    @property
    def _num_chars(self) -> int:
        """Characters of a haystack; of a length in tokens, the prompt's end and reply are left."""
        if self.config.num_tokens is None:
            return self.config.num_chars
        return self.config.num_tokens - self.max_new_tokens - 80

    def fitted(self, model: Model, split: Split, seed: int, num_examples: int) -> Self:
        """The same evaluation with its length in characters, as long as this model's tokens are.

        Raises:
            UserError: the model has no tokenizer, or its tokens are too small for the length.
        """
        if self.config.num_tokens is None:
            return self
        codec = codec_of(model)
        room = self.config.num_tokens - self.max_new_tokens - len(model.start)
        chars, short, long = self._num_chars, 0, 2**20 + 1
        for _ in range(_TRIES):
            settings = {"num_chars": chars, "num_tokens": None}
            fitted = type(self)(self.config.model_copy(update=settings))
            asked = fitted.questions(split, seed, num_examples)
            longest = max(len(codec.encode(question.prompt)) for question in asked)
            if _NEAR * room <= longest <= room:
                return fitted
            short, long = (short, chars) if longest > room else (chars, long)
            chars = int(chars * (1 + _NEAR) / 2 * room / longest)
            if not short < chars < long:
                # Lists of words grow in jumps, over which a step by proportion goes to and fro.
                chars = (short + long) // 2
        raise UserError(
            f"needles of {self.config.num_tokens} tokens: the longest prompt had {longest} where "
            f"{room} are room; ask for another length"
        )

    def _needles(self, rng: np.random.Generator) -> Question:
        variant = self.config.variant
        keys = [str(word) for word in rng.permutation(THINGS)[:4]]
        numbers = [str(n) for n in rng.choice(9000, size=16, replace=False) + 1000]
        if variant == "single":
            pairs, asked = {keys[0]: numbers[:1]}, keys[:1]
        elif variant == "multi_value":
            pairs, asked = {keys[0]: numbers[:4]}, keys[:1]
        else:
            pairs = {key: [numbers[i]] for i, key in enumerate(keys)}
            asked = keys[:1] if variant == "multi_key" else keys[:2]
        needles = [f"A number of the {k} is {n}." for k, each in pairs.items() for n in each]
        wanted = tuple(number for key in asked for number in pairs[key])
        text = self._hidden(rng, needles)
        what = " and of the ".join(asked)
        return Question(f"{text}\nEvery number of the {what}:", (", ".join(wanted),), wanted)

    def _hidden(self, rng: np.random.Generator, needles: list[str]) -> str:
        """Filler of the asked length with the needles at places drawn evenly."""
        average = sum(map(len, FILLER)) / len(FILLER) + 1
        chosen = rng.integers(len(FILLER), size=int(self._num_chars / average))
        sentences = [FILLER[i] for i in chosen]
        for needle in needles:
            sentences.insert(int(rng.integers(len(sentences) + 1)), needle)
        return " ".join(sentences)

    def _words(self, rng: np.random.Generator) -> Question:
        pool = [str(word) for word in rng.permutation(THINGS + PLACES)]
        num = self._num_chars // 8
        if self.config.variant == "common_words":
            # Three words stand often, all others equally seldom.
            wanted, rest = pool[:3], pool[3:]
            often = num // 6
            listed = [word for word in wanted for _ in range(often)]
            listed += [rest[i % len(rest)] for i in range(num - len(listed))]
        else:
            # Word frequencies fall as 1 / rank^2, so that the first word alone is more than half of
            # all.
            weights = 1 / np.arange(1, len(pool) + 1) ** 2
            counts = np.maximum(1, (num * weights / weights.sum()).astype(int))
            wanted = pool[:3]
            listed = [w for w, count in zip(pool, counts, strict=True) for _ in range(int(count))]
        text = " ".join(listed[i] for i in rng.permutation(len(listed)))
        asked = "The three most frequent words, with commas between:"
        return Question(f"{text}\n{asked}", (", ".join(wanted),), tuple(wanted))


def _answers(variant: Variant, reply: str) -> list[str]:
    """What a reply gives as answers, in its order."""
    if variant in _LISTS:
        # The text itself is words with spaces between, so going on with it is no answer.
        return [each.strip(" .\n") for each in re.split(r",|\band\b", reply)]
    return re.findall(_FORMS.get(variant, _NUMBER), reply)
