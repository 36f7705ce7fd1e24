"""Drawing questions in text: each belongs to a split by a hash of its own words.

As `evals.generation` does for rows of tokens: whatever the seeds, no test question is one that
training has shown. Solved questions before the one that is asked come from the training split.
"""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from archloop.errors import UserError
from archloop.evals.base import Split
from archloop.evals.generation import TEST_SHARE_BITS, generator
from archloop.evals.text_tasks import Choice, Question

Asked = TypeVar("Asked", Choice, Question)

_TRIES = 2000


def drawn(
    draw: Callable[[np.random.Generator], Asked], split: Split, seed: int, num_examples: int
) -> list[Asked]:
    """Questions of one split, a pure function of the arguments.

    Raises:
        UserError: hardly any question falls into the split.
    """
    rng = generator(split, seed)
    return [_one(draw, rng, split) for _ in range(num_examples)]


def solved(
    draw: Callable[[np.random.Generator], Question], split: Split, seed: int, num: int, shots: int
) -> list[Question]:
    """As `drawn`, each behind `shots` questions of training with their answers."""
    rng = generator(split, seed)
    found = []
    for _ in range(num):
        shown = [_one(draw, rng, "train") for _ in range(shots)]
        asked = _one(draw, rng, split)
        before = "".join(f"{q.prompt} {q.answers[0]}\n\n" for q in shown)
        found.append(asked._replace(prompt=before + asked.prompt))
    return found


def _one(
    draw: Callable[[np.random.Generator], Asked], rng: np.random.Generator, split: Split
) -> Asked:
    for _ in range(_TRIES):
        question = draw(rng)
        if _is_test(question[0]) == (split == "test"):
            return question
    raise UserError(f"hardly any question falls into the {split} split; make the task larger")


def _is_test(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] >> (8 - TEST_SHARE_BITS) == 0
