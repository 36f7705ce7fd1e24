"""Which logits an artifact must give: a short prompt and some decode steps in eager PyTorch.

The comparison is made by whoever can load the artifact: a session in this process, or a runner on
a device that answers over the wire. A `Case` is all that either needs, and is a file.

Shape suffixes: B batch, T time, R rows of logits (the prompt's last, then one per step),
V vocabulary.
"""

import base64
import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.runtimes.base import Logits, Session
from archloop.runtimes.rounding import Attending, Products, rounded_products
from archloop.stack.decoder import Decoder

CASE = "parity.json"
PROMPT_TOKENS = 40
_STEPS = 6
_LAST_PART = 3
"""The prompt is given in two parts, so that state must carry over; the second has 3 tokens."""
_ROUNDING_FACTOR = 2.0
"""Two engines that round equally much, but elsewhere, lie about 1.4 times as far from each other
as each from float32; measured: at most 1.3 (`benchmarks/runtime_parity.py`)."""
_LARGEST_BOUND = 3.0
"""Unrelated logits lie about 6 apart: however a stack rounds, these must not pass."""


class Case(BaseModel):
    """Tokens, the logits that must come of them, and how far off they may be.

    Attributes:
        parts: of the prompt, each a prefill of its own.
        steps: tokens of the decode steps after it.
        rows: logits after the last part and after each step: float32 in little-endian order, as
            base64.
        bound: of the error, in standard deviations of the logits.
        artifact: folder, from the case's own, of the artifact that has these logits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    rows: tuple[str, ...]
    bound: float
    artifact: str = "."

    @property
    def num_tokens(self) -> int:
        """Tokens that a session must have room for."""
        return sum(map(len, self.parts)) + len(self.steps)

    @property
    def is_finite(self) -> bool:
        """Whether eager PyTorch's own logits are finite numbers."""
        return bool(np.isfinite(decoded(self.rows)).all())

    def error(self, rows_RV: Logits) -> float:
        """Largest difference from the expected logits, in standard deviations of them."""
        return distance(rows_RV, decoded(self.rows))

    def write(self, directory: Path) -> None:
        """Write `parity.json`, whole or not at all."""
        write_atomic(directory / CASE, self.model_dump_json().encode())


def read_case(directory: Path) -> Case | None:
    """The case of an artifact that is still to be compared; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return Case.model_validate_json((directory / CASE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UserError(f"{directory / CASE} is damaged; export the artifact again") from error


def make_case(
    decoder: Decoder,
    dtype: str,
    tolerance: float,
    products: Products | None = None,
    attention: Attending | None = None,
) -> Case:
    """Random tokens and eager PyTorch's logits.

    Args:
        decoder: left as it was.
        dtype: that eager PyTorch computes in.
        tolerance: of the error; where rounding of activations moves eager PyTorch itself by more
            than that, twice as far is the bound.
        products: how a quantised engine rounds; none: not at all.
        attention: how it rounds in attention, beside its products.
    """
    ids = case_tokens(decoder.spec.vocab_size)
    prompt, steps = ids[:PROMPT_TOKENS], ids[PROMPT_TOKENS:]
    parts = (tuple(prompt[:-_LAST_PART]), tuple(prompt[-_LAST_PART:]))
    if products:
        expected, exact = (
            quantised_logits(decoder, parts, steps, products, inputs=inputs, attention=attention)
            for inputs, attention in ((True, attention), (False, None))
        )
    else:
        expected = exact = eager_logits(decoder, prompt, steps, dtype)
    if dtype != "float32":
        exact = eager_logits(decoder, prompt, steps, "float32", weights=dtype)
    rounding = distance(expected, exact)
    bound = max(tolerance, _ROUNDING_FACTOR * rounding) if math.isfinite(rounding) else tolerance
    return Case(
        parts=parts,
        steps=tuple(steps),
        rows=encoded(expected),
        bound=min(bound, _LARGEST_BOUND),
    )


def case_tokens(vocab_size: int) -> list[int]:
    """The random tokens of every case: the prompt's, then those of the steps."""
    rng = np.random.default_rng(0)
    ids: list[int] = rng.integers(vocab_size, size=PROMPT_TOKENS + _STEPS).tolist()
    return ids


def settled(case: Case, rows_RV: Logits, decoder: Decoder) -> float:
    """The error of logits in float32, if need be by exact ones.

    Eager PyTorch in float32 rounds as well: where the two lie too far apart, that may be either's.
    Logits of the same weights in float64 have no such rounding and decide, by the same bound.

    Args:
        case: of a decoder that is not quantised, in float32.
        rows_RV: an engine's logits.
        decoder: left as it was.
    """
    error = case.error(rows_RV)
    if error <= case.bound or not case.is_finite:
        return error
    prompt = [token for part in case.parts for token in part]
    return distance(rows_RV, eager_logits(decoder, prompt, list(case.steps), "float64"))


def encoded(rows_RV: Logits) -> tuple[str, ...]:
    """Rows of logits as text; see `Case.rows`."""
    return tuple(base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows_RV)


def decoded(rows: Sequence[str]) -> Logits:
    """Rows of logits (R, V) from text.

    Raises:
        ValueError: they are no base64, or differ in length.
    """
    return np.stack([np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in rows])


def distance(found: Logits, expected: Logits) -> float:
    """Largest difference of a logit, in standard deviations of the expected ones."""
    return float(np.abs(found - expected).max() / max(float(expected.std()), 1e-30))


def eager_logits(
    decoder: Decoder, prompt: list[int], more: list[int], dtype: str, *, weights: str | None = None
) -> Logits:
    """Logits (R, V) of the decoder itself, which is left as it was.

    Args:
        decoder: weights in any precision.
        prompt: tokens of the prefill.
        more: tokens of the decode steps.
        dtype: that is computed in.
        weights: precision that weights are rounded to first; None leaves them.
    """
    for wanted in (getattr(torch, name) for name in (weights, dtype) if name):
        if decoder.embedding.weight.dtype != wanted:
            decoder = copy.deepcopy(decoder).to(wanted)
    was_training = decoder.training
    decoder.eval()
    state = decoder.init_state(1, len(prompt) + len(more))
    rows = [decoder.prefill(torch.tensor([prompt]), state)]
    rows += [decoder.step(torch.tensor([token]), state) for token in more]
    decoder.train(was_training)
    logits_RV: Logits = torch.cat(rows).float().numpy()
    return logits_RV


def quantised_logits(
    decoder: Decoder,
    parts: Sequence[Sequence[int]],
    steps: Sequence[int],
    products: Products,
    *,
    inputs: bool = True,
    attention: Attending | None = None,
) -> Logits:
    """Logits (R, V) of a decoder that computes as a quantised engine does.

    Args:
        decoder: left as it was.
        parts: of the prompt. An engine that rounds all activations of a call on one scale gives
            other logits for other parts, so they are the same here.
        steps: tokens after it, each a prefill of one: the form that graphs are traced in.
        products: how the engine rounds.
        inputs: round what weights are multiplied by, too.
        attention: computes attention as the engine does; None: PyTorch's.
    """
    decoder = copy.deepcopy(decoder).float().eval()
    state = decoder.init_state(1, sum(map(len, parts)) + len(steps))
    calls = [*parts, *([token] for token in steps)]
    rounded = rounded_products(decoder, products, inputs=inputs, attention=attention)
    with torch.no_grad(), rounded:
        rows = [decoder.prefill(torch.tensor([list(call)]), state) for call in calls]
    logits_RV: Logits = torch.cat(rows[len(parts) - 1 :]).numpy()
    return logits_RV


def session_rows(session: Session, parts: Sequence[Sequence[int]], steps: Sequence[int]) -> Logits:
    """Logits (R, V) of a session from its start: after the last part, then after each step."""
    session.reset()
    for part in parts:
        session.prefill(session.prepare(part))
    rows = [session.logits().copy()]
    for token in steps:
        session.decode_step(token)
        rows.append(session.logits().copy())
    return np.stack(rows)
