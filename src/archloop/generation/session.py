"""An engine's session as a model that generates: what was exported speaks as its decoder does.

A session holds one row and cannot go back, so drafts and several rows are refused.

Shape suffixes: B batch (1), T time, V vocabulary.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from archloop.errors import UserError


class Session(Protocol):
    """The part of `archloop.runtimes.base.Session` that generation needs."""

    max_context: int
    vocab_size: int

    def prepare(self, ids: Any) -> Any:
        """A prompt as `prefill` takes it, checked."""

    def prefill(self, ids: Any) -> int:
        """Take in tokens after those already held."""

    def decode_step(self, token: int) -> int:
        """Take in one token."""

    def logits(self) -> Any:
        """Logits (V,) of the last call."""

    def reset(self) -> None:
        """Forget all tokens."""


class SessionState:
    """How many tokens the session holds; the rest is inside the engine."""

    def __init__(self, session: Session) -> None:
        self.lengths_B = torch.zeros(1, dtype=torch.int64)
        self.max_context = session.max_context
        self._session = session

    def row(self, index: int) -> "SessionState":
        """The one row there is."""
        return self

    def snapshot(self) -> "SessionState":
        """Refused."""
        raise UserError("an engine's session cannot be copied; generate with the decoder")

    def mark(self, into: "SessionState | None" = None) -> "SessionState":
        """Refused."""
        raise UserError("an engine's session cannot go back; generate with the decoder")

    def restore(self, snapshot: "SessionState") -> None:
        """Refused."""
        self.mark()

    def recount(self, num_tokens: int) -> None:
        """Nothing to do: the only row is the longest."""

    def reset(self) -> None:
        """Forget all tokens, in place."""
        self._session.reset()
        self.lengths_B.zero_()


class SessionModel:
    """A session as `archloop.generation.protocol.Model`.

    Args:
        session: open, for one conversation at a time.
        precision: of its weights, for messages.
    """

    def __init__(self, session: Session, precision: str) -> None:
        self.session, self.precision = session, precision
        self.vocab_size, self.max_context = session.vocab_size, session.max_context

    def init_state(self, batch_size: int, max_context: int) -> SessionState:
        """The session's own state, emptied.

        Raises:
            UserError: several rows, or more tokens than the session has room for.
        """
        if batch_size != 1:
            raise UserError(f"an engine's session has one row, not {batch_size}")
        if max_context > self.max_context:
            raise UserError(
                f"{max_context} tokens do not fit into a session of {self.max_context}; "
                "open it with a larger max_context"
            )
        self.session.reset()
        return SessionState(self.session)

    def prefill(
        self,
        ids_BT: Tensor,
        state: SessionState,
        *,
        mask_BT: Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Take in tokens, in passes of the engine's own size; logits (B, V)."""
        assert mask_BT is None, "one row has no padding"
        self.session.prefill(self.session.prepare(ids_BT[0].tolist()))
        state.lengths_B += ids_BT.shape[1]
        return self._logits()

    def step(self, ids_B: Tensor, state: SessionState) -> Tensor:
        """One token; logits (B, V)."""
        self.session.decode_step(int(ids_B[0]))
        state.lengths_B += 1
        return self._logits()

    def _logits(self) -> Tensor:
        return torch.from_numpy(self.session.logits()).clone()[None]
