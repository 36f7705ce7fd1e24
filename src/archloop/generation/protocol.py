"""What generation needs of a model: a state, prompts into it, one token a row at a time.

`archloop.stack.decoder.Decoder` is such a model, and so is every faster engine over the same state.

Shape suffixes: B batch, T time, V vocabulary.
"""

from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor


class ModelState(Protocol):
    """What a model carries between tokens, advanced in place.

    Attributes:
        lengths_B: tokens in each row, on the model's device.
        max_context: tokens that a row has room for.
    """

    lengths_B: Tensor
    max_context: int

    def row(self, index: int) -> Self:
        """One row as a state of its own on the same memory."""

    def snapshot(self) -> Self:
        """An independent copy."""

    def mark(self, into: Self | None = None) -> Self:
        """A light copy, to go back to over tokens taken in since; `into` an older one, if given."""

    def restore(self, snapshot: Self) -> None:
        """Go back to a snapshot or mark, in place."""

    def recount(self, num_tokens: int) -> None:
        """Say how many tokens the longest row holds, where single rows have been put back."""

    def reset(self) -> None:
        """Forget all tokens, in place."""


class Model(Protocol):
    """A model that generates, over states of its own make (`Any` below).

    What is refused, and how, is said by `archloop.stack.decoder.Decoder`.

    Attributes:
        vocab_size: token ids run from 0 to this, exclusive.
        precision: dtype of the weights, such as ``bfloat16``, for messages.
    """

    @property
    def vocab_size(self) -> int:
        """See above."""

    @property
    def precision(self) -> str:
        """See above."""

    def init_state(self, batch_size: int, max_context: int) -> ModelState:
        """An empty state."""

    def prefill(
        self,
        ids_BT: Tensor,
        state: Any,
        *,
        mask_BT: Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Take in a prompt, or more of one; logits (B, V) after each row's last real token."""

    def step(self, ids_B: Tensor, state: Any) -> Tensor:
        """One token per row; logits (B, V) for the next."""


@runtime_checkable
class Chooser(Protocol):
    """An engine that finds the most likely tokens in the course of a step."""

    def likeliest(self, logits_BV: Tensor) -> tuple[Tensor, Tensor] | None:
        """Each row's most likely token, of logits that a step just gave; None: they are not.

        Returns:
            The tokens (B,), which the next step overwrites; and (2, B), in float64, which stays
            until the second step after: the same tokens, and their logits, NaN for a row that has
            any.
        """


@runtime_checkable
class Bounded(Protocol):
    """An engine that was opened with room for so many tokens, and cannot have more.

    Attributes:
        max_context: tokens that a row has room for at most.
    """

    max_context: int


class Scorer(Model, Protocol):
    """A model that also gives the logits of every token of a chunk, which drafts need."""

    def __call__(self, ids_BT: Tensor, state: Any, *, mask_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); the state is advanced."""
