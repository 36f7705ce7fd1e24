"""Models that answer an evaluation by rule: one knows every answer, one guesses."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from archloop.evals.base import Task, TaskInBits
from archloop.evals.text_tasks import ChoiceTask, ReplyTask
from archloop.evals.verbs import Likelihood, Model

NUM = 200
"""Examples that the contract asks."""


class Bytes:
    """Text as bytes: the simplest tokenizer."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class Answering(Model):
    """A model that asks a method of its own for each verb's answers, and notes the verbs used."""

    vocab_size = 256
    codec = Bytes()
    start = (0,)

    def __init__(self) -> None:
        self.used: set[str] = set()

    def best(self, ids_NT: Any, asked_NT: Any) -> Any:
        """Tokens for `predict`."""
        raise NotImplementedError

    def nats(self, request: Any) -> float:
        """Log-likelihood of one request."""
        raise NotImplementedError

    def logs(self, row: Any) -> Any:
        """Log-likelihoods of a row's tokens after the first."""
        raise NotImplementedError

    def reply(self, request: Any) -> str:
        """What is generated."""
        raise NotImplementedError

    def predict(self, ids_NT: Any, asked_NT: Any) -> Any:
        self.used.add("predict")
        return self.best(ids_NT, asked_NT)

    def loglikelihood(self, requests: Any) -> Any:
        self.used.add("loglikelihood")
        return [Likelihood(self.nats(request), False) for request in requests]

    def loglikelihood_rolling(self, rows: Any) -> Any:
        self.used.add("loglikelihood_rolling")
        return [self.logs(row) for row in rows]

    def generate_until(self, requests: Any) -> Any:
        self.used.add("generate_until")
        return [self.reply(request) for request in requests]


class Oracle(Answering):
    """Knows every answer of an evaluation's test split."""

    def __init__(self, evaluation: Any, seed: int) -> None:
        super().__init__()
        if isinstance(evaluation, Task):
            self.rows = evaluation.examples("test", seed, NUM)
        if isinstance(evaluation, ChoiceTask):
            asked = evaluation.questions("test", seed, NUM)
            self.right = {q.context + q.choices[q.right] for q in asked}
        if isinstance(evaluation, ReplyTask):
            self.replies = {q.prompt: q.answers[0] for q in evaluation.questions("test", seed, NUM)}

    def best(self, ids_NT: Any, asked_NT: Any) -> Any:
        del asked_NT
        assert np.array_equal(ids_NT, self.rows.ids_NT)
        return self.rows.targets_NT

    def nats(self, request: Any) -> float:
        text = self.codec.decode([*request.prefix[1:], *request.continuation])
        return 0.0 if text in self.right else -9.0

    def logs(self, row: Any) -> Any:
        return np.zeros(len(row) - 1)

    def reply(self, request: Any) -> str:
        return " " + str(self.replies[self.codec.decode(request.ids[1:])])


@lru_cache(maxsize=1)
def _answers(task: Any) -> list[Any]:
    """The tokens that answer at each place of a row, as many examples show them."""
    targets_NT = task.examples("test", 1, 4000).targets_NT
    return [np.unique(column_N[column_N >= 0]) for column_N in targets_NT.T]


class Guesser(Answering):
    """Answers by lot, a new one for each request, as if it had never seen a question twice."""

    def __init__(self, evaluation: Any, seed: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.task = evaluation

    def best(self, ids_NT: Any, asked_NT: Any) -> Any:
        del asked_NT
        # It knows which tokens answer at each place, and nothing about the example.
        out_NT = np.zeros_like(ids_NT)
        for place, answers in enumerate(_answers(self.task)):
            if len(answers):
                out_NT[:, place] = self.rng.choice(answers, size=len(ids_NT))
        return out_NT

    def nats(self, request: Any) -> float:
        del request
        return -float(self.rng.random())

    def logs(self, row: Any) -> Any:
        bits = self.task.chance if isinstance(self.task, TaskInBits) else 8
        return np.full(len(row) - 1, -bits * np.log(2))

    def reply(self, request: Any) -> str:
        replies = self.task.guesses(self.codec.decode(request.ids[1:]))
        return str(self.rng.choice(replies) if replies else self.rng.integers(100))
