"""An exported artifact as a model under evaluation: one row at a time, token by token.

An engine's session answers a prefill with the logits after its last token alone. So likelihoods go
by teacher-forced steps: the prefix is taken in at once, and each further token is fed as it stands
in the row while the logits before it are kept. That is slow, so a row's steps have a limit.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UserError
from archloop.evals.verbs import Continuation, Likelihood, Model, Prompt, TextCodec
from archloop.runtimes.base import Session
from archloop.text.streaming import TextStream

MAX_STEPS = 4096
"""Decode steps that one request may take."""


class ArtifactModel(Model):
    """A session of an engine; its state is forgotten before each request."""

    def __init__(
        self,
        session: Session,
        vocab_size: int,
        codec: TextCodec | None = None,
        *,
        start: tuple[int, ...] = (),
        stop_ids: tuple[int, ...] = (),
        max_steps: int = MAX_STEPS,
    ) -> None:
        """A model over a loaded session.

        Args:
            session: of any runtime.
            vocab_size: of the artifact's spec.
            codec: its tokenizer.
            start: ids that begin every text.
            stop_ids: ids that end a reply.
            max_steps: decode steps that one request may take.
        """
        self.vocab_size = vocab_size
        self.codec = codec
        self.start = start
        self._session = session
        self._stop_ids = frozenset(stop_ids)
        self._max_steps = max_steps

    def predict(self, ids_NT: NDArray[np.int64], asked_NT: NDArray[np.bool_]) -> NDArray[np.int64]:
        predictions_NT = np.full_like(ids_NT, -1)
        for row, asked in enumerate(asked_NT):
            places = np.flatnonzero(asked)
            if len(places):
                known, last = ids_NT[row, : places[0] + 1], int(places[-1])
                forced = ids_NT[row, places[0] + 1 : last + 1]
                for place, logits in enumerate(self._forced(known, forced), int(places[0])):
                    predictions_NT[row, place] = int(logits.argmax())
        return predictions_NT

    def loglikelihood(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        answers = []
        for prefix, continuation in requests:
            logits = self._forced(prefix, continuation[:-1])
            costs = [_cost(each, token) for each, token in zip(logits, continuation, strict=True)]
            nats = sum(cost for cost, _ in costs)
            answers.append(Likelihood(nats, all(is_best for _, is_best in costs)))
        return answers

    def loglikelihood_rolling(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        answers = []
        for row in rows:
            logits = self._forced(row[:1], row[1:-1])
            costs = [_cost(each, token)[0] for each, token in zip(logits, row[1:], strict=True)]
            answers.append(np.array(costs, dtype=np.float64))
        return answers

    def generate_until(self, requests: Sequence[Prompt]) -> list[str]:
        if self.codec is None:
            raise UserError("this model has no tokenizer, so it cannot be asked for text")
        return [self._reply(request, self.codec) for request in requests]

    def _reply(self, request: Prompt, codec: TextCodec) -> str:
        # The last new token is never fed back.
        num_fed = request.max_new_tokens - 1
        self._check(num_fed, len(request.ids) + num_fed)
        stream = TextStream(
            lambda ids: str(codec.decode(list(ids))), list(request.stops), request.ids
        )
        self._session.reset()
        token = self._session.prefill(self._session.prepare([int(each) for each in request.ids]))
        for number in range(request.max_new_tokens):
            if token in self._stop_ids:
                break
            stream.push([token])
            lost = request.lost is not None and request.lost(stream.text)
            if stream.stopped or lost or number + 1 == request.max_new_tokens:
                break
            token = self._session.decode_step(token)
        stream.flush()
        return stream.text

    def _forced(
        self, known: Sequence[int] | NDArray[np.int64], forced: Sequence[int] | NDArray[np.int64]
    ) -> Iterator[NDArray[np.float32]]:
        """Logits (V,) after the known tokens, and after each forced one.

        Raises:
            UserError: too many steps, or more tokens than the artifact has room for.
        """
        self._check(len(forced), len(known) + len(forced))
        self._session.reset()
        self._session.prefill(self._session.prepare([int(token) for token in known]))
        yield self._session.logits()
        for token in forced:
            self._session.decode_step(int(token))
            yield self._session.logits()

    def _check(self, num_steps: int, num_tokens: int) -> None:
        if num_steps > self._max_steps:
            raise UserError(
                f"a request takes {num_steps} decode steps on this artifact, more than "
                f"{self._max_steps}; give shorter examples or raise max_steps"
            )
        if num_tokens > self._session.max_context:
            raise UserError(
                f"a request has {num_tokens} tokens, and the artifact room for "
                f"{self._session.max_context}; export it with a larger context"
            )


def _cost(logits: NDArray[np.float32], token: int) -> tuple[float, bool]:
    """Logarithm of a token's probability, and whether it is the best."""
    exact = logits.astype(np.float64)
    highest = exact.max()
    log = float(exact[token] - highest - np.log(np.exp(exact - highest).sum()))
    return log, int(logits.argmax()) == int(token)
