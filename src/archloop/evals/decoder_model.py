"""A decoder as a model under evaluation: whole rows at once, batched by length.

Rows are padded on the right, where a causal decoder cannot see the padding, so that a row's
answers do not depend on its neighbours beyond rounding.

Shape suffixes: B batch, N rows, T time, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from archloop.errors import UserError
from archloop.evals.continuations import likelihoods
from archloop.evals.verbs import Continuation, Likelihood, Model, Prompt, TextCodec
from archloop.generation.generation import generate
from archloop.stack.decoder import Decoder

MAX_LOGITS = 2**27
"""Logits that a batch may hold at once: half a GiB in float32."""
MAX_SCORES = 2**29
"""Pairs of tokens that padded prompts may have at once: attention with a mask may keep a number for
each pair and head."""


class DecoderModel(Model):
    """A decoder, under the caller's autocast if there is one."""

    def __init__(
        self,
        decoder: Decoder,
        codec: TextCodec | None = None,
        *,
        start: tuple[int, ...] = (),
        stop_ids: tuple[int, ...] = (),
        batch_size: int = 32,
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> None:
        """A model over a decoder in evaluation mode.

        Args:
            decoder: as it is, on its device.
            codec: its tokenizer.
            start: ids that begin every text.
            stop_ids: ids that end a reply.
            batch_size: most rows at a time.
            on_rows: told of the number of rows after each batch, for a progress bar.
        """
        self.vocab_size = decoder.spec.vocab_size
        self.codec = codec
        self.start = start
        self._decoder = decoder
        self._longest = decoder.spec.max_context
        self._stop_ids = stop_ids
        self._batch_size = batch_size
        self._on_rows = on_rows

    def predict(self, ids_NT: NDArray[np.int64], asked_NT: NDArray[np.bool_]) -> NDArray[np.int64]:
        self._check_length(ids_NT.shape[1])
        size = self._rows_at_once(ids_NT.shape[1])
        parts = []
        for start in range(0, len(ids_NT), size):
            logits_BTV = self._logits(torch.from_numpy(ids_NT[start : start + size]))
            parts.append(logits_BTV.argmax(-1).cpu())
            self._on_rows(len(parts[-1]))
        predictions_NT: NDArray[np.int64] = torch.cat(parts).numpy()
        return predictions_NT

    def loglikelihood(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        for request in requests:
            if not len(request.prefix) or not len(request.continuation):
                raise ValueError("a continuation and its prefix have at least one token each")
            # The last token of a continuation is scored and never fed.
            self._check_length(len(request.prefix) + len(request.continuation) - 1)
        return likelihoods(self._decoder, requests, self._rows_at_once, self._on_rows)

    def loglikelihood_rolling(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """See `Model.loglikelihood_rolling`."""
        scored: list[NDArray[np.float64] | None] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
        if rows:
            self._check_length(len(rows[order[0]]) - 1)
        start = 0
        while start < len(order):
            longest = len(rows[order[start]])
            batch = order[start : start + self._rows_at_once(longest)]
            start += len(batch)
            for index, logs_T in zip(batch, self._batch([rows[i] for i in batch]), strict=True):
                scored[index] = logs_T
            self._on_rows(len(batch))
        return [logs_T for logs_T in scored if logs_T is not None]

    def generate_until(self, requests: Sequence[Prompt]) -> list[str]:
        if self.codec is None:
            raise UserError("this model has no tokenizer, so it cannot be asked for text")
        codec = self.codec
        replies: list[str] = [""] * len(requests)
        # All rows of a batch share one set of stop strings, so equal sets are put together; among
        # them, rows of similar length need the least padding.
        order = sorted(range(len(requests)), key=lambda i: (_ends(requests[i]), _size(requests[i])))
        for request in requests:
            # The last new token is produced but never fed back, so it needs no room.
            self._check_length(_size(request) + request.max_new_tokens - 1)
        for (stops, max_new), group in groupby(order, key=lambda i: _ends(requests[i])):
            for batch in self._batches(list(group), requests):
                found = generate(
                    self._decoder,
                    [list(requests[i].ids) for i in batch],
                    max_new,
                    stop_ids=self._stop_ids,
                    stop_strings=stops,
                    decode=lambda ids: str(codec.decode(list(ids))),
                    ends=_lost([requests[i] for i in batch]),
                )
                self._on_rows(len(batch))
                for index, reply in zip(batch, found, strict=True):
                    replies[index] = reply.text or ""
        return replies

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float64]]:
        """What each row's tokens but the first cost, (T-1,)."""
        longest = max(len(row) for row in rows)
        ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            ids_BT[index, : len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        logits_BTV = self._logits(ids_BT[:, :-1]).float()
        next_BT = ids_BT[:, 1:].to(logits_BTV.device)
        nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), next_BT, reduction="none")
        logs_BT = -nats_BT.double().cpu().numpy()
        for index, row in enumerate(rows):
            yield logs_BT[index, : len(row) - 1]

    @torch.inference_mode()
    def _logits(self, ids_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self._decoder(ids_BT.to(self._decoder.embedding.weight.device))
        return logits_BTV

    def _check_length(self, num_tokens: int) -> None:
        """Refuse what the model was not made for: its scores would tell of the length alone."""
        if self._longest is not None and num_tokens > self._longest:
            raise UserError(
                f"a request has {num_tokens} tokens and the model is made for {self._longest}; "
                "give shorter examples"
            )

    def _batches(self, order: list[int], requests: Sequence[Prompt]) -> Iterator[list[int]]:
        """Prompts to read together; the longest first, so that a lack of memory shows at once."""
        while order:
            pairs = max(1, _size(requests[order[-1]])) ** 2
            size = max(1, min(self._batch_size, MAX_SCORES // pairs))
            order, batch = order[:-size], order[-size:]
            yield batch

    def _rows_at_once(self, length: int) -> int:
        return max(1, min(self._batch_size, MAX_LOGITS // (max(1, length) * self.vocab_size)))


def _lost(requests: Sequence[Prompt]) -> Callable[[int, str], bool] | None:
    """Whether a row's reply is lost already; None where nobody can tell."""
    told = [request.lost for request in requests]
    if not any(told):
        return None

    def lost(row: int, begun: str) -> bool:
        tell = told[row]
        return tell is not None and tell(begun)

    return lost


def _ends(request: Prompt) -> tuple[tuple[str, ...], int]:
    return tuple(request.stops), request.max_new_tokens


def _size(request: Prompt) -> int:
    return len(request.ids)
