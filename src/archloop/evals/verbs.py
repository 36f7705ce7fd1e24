"""What an evaluation may ask of a model: four verbs over token ids, and text to ids and back.

A proxy, a checkpoint and an exported artifact are all such models, so that one evaluation scores
each of them. Requests come in any number and length; a model batches them as it likes, and its
answers come in the order of the requests.

Shape suffixes: N rows, T time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Verb = Literal["predict", "loglikelihood", "loglikelihood_rolling", "generate_until"]


class TextCodec(Protocol):
    """Text to token ids and back, without special tokens."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""


class Continuation(NamedTuple):
    """What may follow some tokens; both parts at least one token."""

    prefix: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """How likely a continuation is.

    Attributes:
        nats: logarithm of its probability after the prefix.
        is_greedy: each of its tokens is the model's best.
    """

    nats: float
    is_greedy: bool


class Prompt(NamedTuple):
    """What to continue, and where to end.

    Attributes:
        ids: the prompt, at least one token.
        stops: texts of which the first that appears ends the reply and is cut off.
        max_new_tokens: the reply ends here at the latest.
        lost: whether a reply that begins so earns nothing, whatever follows; a model may end it
            there. None: nobody can tell before its end.
    """

    ids: Sequence[int]
    stops: Sequence[str]
    max_new_tokens: int
    lost: Callable[[str], bool] | None = None


class Model(ABC):
    """A model under evaluation.

    Attributes:
        vocab_size: token ids run from 0 to this, exclusive.
        codec: text to ids and back; None where only ids can be asked about.
        start: ids that begin every text, such as the tokenizer's beginning of a sequence.
    """

    vocab_size: int
    codec: TextCodec | None = None
    start: tuple[int, ...] = ()

    @abstractmethod
    def predict(self, ids_NT: NDArray[np.int64], asked_NT: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The best next token after each asked position, (N, T); elsewhere any value.

        Args:
            ids_NT: rows of one length.
            asked_NT: where a prediction is wanted.
        """

    @abstractmethod
    def loglikelihood(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """How likely each continuation is after its prefix.

        Raises:
            UserError: a request is longer than the model can take.
        """

    @abstractmethod
    def loglikelihood_rolling(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """Logarithm of the probability of each token of a row but the first, after those before.

        Raises:
            UserError: a row is longer than the model can take.
        """

    @abstractmethod
    def generate_until(self, requests: Sequence[Prompt]) -> list[str]:
        """Greedy replies as text, without the stop that ended them.

        Raises:
            UserError: the model has no codec, or a request is longer than it can take.
        """


class Shifted(Model):
    """A model seen through a window of its vocabulary, as a task in a mixture sees it.

    The task's token 0 is the model's token `first_id`; predictions outside the window are ids
    outside the task's vocabulary, and so never right.
    """

    def __init__(self, model: Model, first_id: int, vocab_size: int) -> None:
        self._model = model
        self._first_id = first_id
        self.vocab_size = vocab_size

    def predict(self, ids_NT: NDArray[np.int64], asked_NT: NDArray[np.bool_]) -> NDArray[np.int64]:
        return self._model.predict(ids_NT + self._first_id, asked_NT) - self._first_id

    def loglikelihood(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        return self._model.loglikelihood(
            [Continuation(self._shift(r.prefix), self._shift(r.continuation)) for r in requests]
        )

    def loglikelihood_rolling(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        return self._model.loglikelihood_rolling([self._shift(row) for row in rows])

    def generate_until(self, requests: Sequence[Prompt]) -> list[str]:
        return self._model.generate_until([r._replace(ids=self._shift(r.ids)) for r in requests])

    def _shift(self, ids: Sequence[int]) -> list[int]:
        return [int(token) + self._first_id for token in ids]
