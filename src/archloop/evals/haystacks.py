"""Long texts that hide what is asked for: RULER's tasks beyond a number among noise.

Each function draws one haystack of about so many characters, the question after it, and what the
reply must hold (arXiv 2404.06654, section 3 and appendix B). Where RULER takes essays and quizzes,
prose here is drawn from words, so that nothing has to be fetched and no model has read it.
"""

import string
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from archloop.evals.text_tasks import Question
from archloop.evals.words import COLOURS, FILLER, NAMES, PLACES, THINGS

Rng = np.random.Generator

HOPS = 4
"""Variables that take the first one's value, each from the one before."""


def in_prose(rng: Rng, num_chars: int) -> Question:
    """A number among sentences that differ."""
    key, number = str(rng.choice(THINGS)), _number(rng)
    return _single(rng, num_chars, f"the {key}", number)


def code_in_prose(rng: Rng, num_chars: int) -> Question:
    """A long code among sentences that differ."""
    return _single(rng, num_chars, f"the {rng.choice(THINGS)}", _code(rng))


def among_keys(rng: Rng, num_chars: int) -> Question:
    """A number among those of as many other things as fit."""

    def key() -> str:
        _, colour, thing, place = _scene(rng)
        return f"the {colour} {thing} of the {place}"

    return _among(rng, num_chars, key, lambda: _number(rng))


def among_codes(rng: Rng, num_chars: int) -> Question:
    """A code among as many other codes as fit, by a code."""
    return _among(rng, num_chars, lambda: _code(rng), lambda: _code(rng))


def tracking(rng: Rng, num_chars: int) -> Question:
    """Every variable that took a value, from another or from one that did."""
    letters = string.ascii_uppercase
    names = ["".join(letters[i] for i in rng.integers(26, size=5)) for _ in range(HOPS + 1)]
    value = _number(rng)
    said = [f"VAR {names[0]} = {value}."]
    said += [f"VAR {new} = VAR {old}." for old, new in pairwise(names)]
    average = sum(map(len, FILLER)) / len(FILLER) + 1
    num = max(len(said), int((num_chars - sum(map(len, said))) / average))
    sentences = [FILLER[i] for i in rng.integers(len(FILLER), size=num)]
    # At places drawn evenly, in the order in which they are said: from the last on, so that none
    # moves those before it.
    places = sorted(int(place) for place in rng.integers(num + 1, size=len(said)))
    for place, sentence in reversed(list(zip(places, said, strict=True))):
        sentences.insert(place, sentence)
    text = " ".join(sentences)
    return Question(f"{text}\nEvery variable that is {value}:", (", ".join(names),), tuple(names))


def question(rng: Rng, num_chars: int) -> Question:
    """What one of many similar sentences says of someone."""
    sentences = _prose(rng, num_chars)
    name, colour, thing, place = _scene(rng)
    told = f"{name} took the {colour} {thing} to the {place}."
    # No other sentence may answer the question otherwise.
    sentences = [each for each in sentences if not each.startswith(told[: -len(place) - 1])]
    sentences.insert(int(rng.integers(len(sentences) + 1)), told)
    asked = f"{name} took the {colour} {thing} to the"
    return Question(f"{' '.join(sentences)}\nWhere to? {asked}", (place,), (place,))


HAYSTACKS: dict[str, Callable[[Rng, int], Question]] = {
    "single_prose": in_prose,
    "single_code": code_in_prose,
    "all_keys": among_keys,
    "all_codes": among_codes,
    "tracking": tracking,
    "question": question,
}


def _single(rng: Rng, num_chars: int, key: str, value: str) -> Question:
    sentences = _prose(rng, num_chars)
    sentences.insert(int(rng.integers(len(sentences) + 1)), _needle(key, value))
    return Question(f"{' '.join(sentences)}\nEvery number of {key}:", (value,), (value,))


def _among(rng: Rng, num_chars: int, key: Callable[[], str], value: Callable[[], str]) -> Question:
    """Needles alone, each with a key of its own, of which one is asked for."""
    values: dict[str, str] = {}
    length = 0
    while length < num_chars or len(values) < 2:
        new = key()
        if new not in values:
            values[new] = value()
            length += len(_needle(new, values[new])) + 1
    text = " ".join(_needle(*each) for each in values.items())
    asked = list(values)[int(rng.integers(len(values)))]
    wanted = values[asked]
    return Question(f"{text}\nEvery number of {asked}:", (wanted,), (wanted,))


def _prose(rng: Rng, num_chars: int) -> list[str]:
    sentences: list[str] = []
    length = 0
    while length < num_chars:
        name, colour, thing, place = _scene(rng)
        sentences.append(f"{name} took the {colour} {thing} to the {place}.")
        length += len(sentences[-1]) + 1
    return sentences


def _scene(rng: Rng) -> tuple[str, str, str, str]:
    # By one draw for all four words: long texts are made of thousands of scenes.
    number = int(rng.integers(len(NAMES) * len(COLOURS) * len(THINGS) * len(PLACES)))
    number, name = divmod(number, len(NAMES))
    number, colour = divmod(number, len(COLOURS))
    place, thing = divmod(number, len(THINGS))
    return NAMES[name], COLOURS[colour], THINGS[thing], PLACES[place]


def _needle(key: str, value: str) -> str:
    return f"A number of {key} is {value}."


def _number(rng: Rng) -> str:
    return str(rng.integers(1000, 10_000))


def _code(rng: Rng) -> str:
    return rng.bytes(12).hex()
