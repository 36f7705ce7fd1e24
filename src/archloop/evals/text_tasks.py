"""Evaluations in text: choosing the likelier continuation, and writing a reply.

A file in `evals/tasks/` names its questions; how they are asked and graded is settled here. Tokens
of context and continuation are those of the whole text, cut where the context's tokens end. Where
no cut falls there, since a token spans the end of the context, both are cut into tokens alone.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from archloop.errors import UserError
from archloop.evals.base import Evaluation, Grades, Split
from archloop.evals.verbs import Continuation, Model, Prompt, TextCodec


class NoSettings(BaseModel):
    """Settings of an evaluation that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(NamedTuple):
    """A context, what may follow it, and which of these is right."""

    context: str
    choices: tuple[str, ...]
    right: int


class ChoiceTask(Evaluation):
    """The likeliest continuation is the model's answer; several equally likely share the credit.

    Questions of one context are one cluster of the standard error.
    """

    verb = "loglikelihood"

    @abstractmethod
    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        """Questions of a split, a pure function of the arguments."""

    def grade(self, model: Model, split: Split, seed: int, num_examples: int) -> Grades:
        """See `Evaluation.grade`."""
        codec = codec_of(model)
        questions = self.questions(split, seed, num_examples)
        requests = [
            continuation(codec, model.start, question.context, choice)
            for question in questions
            for choice in question.choices
        ]
        answers = iter(model.loglikelihood(requests))
        values = []
        for question in questions:
            nats = np.array([next(answers).nats for _ in question.choices])
            if np.isnan(nats).any():
                values.append(math.nan)
                continue
            best = nats == nats.max()
            values.append(float(best[question.right]) / int(best.sum()))
        # Questions that are drawn may ask about the same several times, with other choices.
        numbers: dict[str, int] = {}
        clusters = [numbers.setdefault(question.context, len(numbers)) for question in questions]
        return Grades(np.array(values), clusters_N=np.array(clusters))


class Question(NamedTuple):
    """A prompt, and the replies that count as right.

    Attributes:
        data: what a task that grades by a rule needs besides, to be hashed; else None.
    """

    prompt: str
    answers: tuple[str, ...]
    data: Any = None


class ReplyTask(Evaluation):
    """The model writes a reply, which is compared with the right ones.

    Attributes:
        stops: texts that end a reply.
        max_new_tokens: the reply ends here at the latest.
    """

    verb = "generate_until"
    stops: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32

    @abstractmethod
    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        """Questions of a split, a pure function of the arguments."""

    @property
    def chance(self) -> float:
        """A right reply is not written by guessing, unless a task says otherwise."""
        return 0.0

    def guesses(self, prompt: str) -> tuple[str, ...]:
        """Replies to choose between for whoever knows the form of a question alone; `chance` is
        what choosing by lot scores. Empty: no such reply is likelier than any other text.
        """
        del prompt
        return ()

    def credit(self, reply: str, question: Question) -> float:
        """1 for a right reply, 0 for a wrong one, unless a task grades in between."""
        return float(reply.strip() in question.answers)

    def is_lost(self, begun: str, question: Question) -> bool:
        """Whether a reply that begins so earns nothing, whatever follows: it need not be finished.

        A task with a `credit` of its own says here what it knows of it; nothing is lost otherwise.
        """
        if type(self).credit is not ReplyTask.credit:
            return False
        return not any(answer.startswith(begun.strip()) for answer in question.answers)

    def fitted(self, model: Model, split: Split, seed: int, num_examples: int) -> Self:
        """The evaluation whose questions this model is asked: itself, unless a task makes their
        length depend on the model's tokens. Arguments and errors as `grade`.
        """
        del model, split, seed, num_examples
        return self

    def grade(self, model: Model, split: Split, seed: int, num_examples: int) -> Grades:
        """See `Evaluation.grade`."""
        codec = codec_of(model)
        asked = self.fitted(model, split, seed, num_examples)
        questions = asked.questions(split, seed, num_examples)
        prompts = [
            Prompt(
                [*model.start, *codec.encode(question.prompt)],
                self.stops,
                self.max_new_tokens,
                partial(self.is_lost, question=question),
            )
            for question in questions
        ]
        replies = model.generate_until(prompts)
        return Grades(
            np.array([self.credit(r, q) for r, q in zip(replies, questions, strict=True)])
        )


def codec_of(model: Model) -> TextCodec:
    """A model's tokenizer.

    Raises:
        UserError: it has none.
    """
    if model.codec is None:
        raise UserError("this model has no tokenizer, so it cannot be asked in text")
    return model.codec


def continuation(
    codec: TextCodec, start: Sequence[int], context: str, following: str
) -> Continuation:
    """Token ids of a context and of what follows it, as one text would be cut.

    Raises:
        ValueError: the text after the context is empty, or nothing stands before it.
    """
    before = [*start, *codec.encode(context)]
    whole = [*start, *codec.encode(context + following)]
    if whole[: len(before)] != before or len(whole) == len(before):
        # A token of the whole text spans the join: cut by the context's number of tokens, a part
        # of what is to be scored would stand in the prefix.
        whole = before + list(codec.encode(following))
    if not before or len(whole) <= len(before):
        raise ValueError(f"nothing to predict: context {context!r}, then {following!r}")
    return Continuation(whole[: len(before)], whole[len(before) :])
