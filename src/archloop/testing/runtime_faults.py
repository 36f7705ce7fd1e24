"""Faults that users of other engines met, each as a test that every runtime must pass.

Sources: issues of llama.cpp, ExecuTorch, ONNX Runtime GenAI and of LFM2's public implementations:
states that outlive a conversation, windows shorter than a prompt, parts shorter than a convolution,
quantisers that lose a part of a block, routers that take another function.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from archloop.blocks.channel_mixers.moe import MoE
from archloop.runtimes.base import Logits, Session
from archloop.runtimes.parity import eager_logits, quantised_logits, session_rows
from archloop.stack.decoder import Decoder

Parts = Sequence[Sequence[int]]


def expected_rows(exported: Any, parts: Parts, steps: Sequence[int]) -> Logits:
    """Logits (R, V) that an artifact must give after the last part and after each step."""
    runtime, quant, decoder, folder, *_ = exported
    return _reference(runtime, quant, decoder, folder, parts, steps)


def _reference(
    runtime: Any, quant: str, decoder: Decoder, folder: Any, parts: Parts, steps: Sequence[int]
) -> Logits:
    if products := runtime.products(decoder, folder, quant):
        named = dict(decoder.named_parameters())
        # What the decoder has lost is not the artifact's.
        held = {name: each for name, each in products.items() if bool(named[name].any())}
        return quantised_logits(decoder, parts, steps, held, attention=runtime.attention())
    prompt = [token for part in parts for token in part]
    return eager_logits(decoder, prompt, list(steps), runtime.reference_dtype(quant))


def tokens(count: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return [int(i) for i in np.random.default_rng(seed).integers(256, size=count)]


class RuntimeFaults:
    """Tests over what the fixture `exported` of `RuntimeContract` holds."""

    def test_a_conversation_leaves_nothing_to_the_next(self, exported: Any) -> None:
        *_, session = exported
        parts, steps = [tokens(7, 2)], tokens(3, 3)
        first = session_rows(session, parts, steps)
        # It fills every slot and every state.
        session_rows(session, [tokens(session.max_context - 2, 4)], tokens(2, 5))
        np.testing.assert_array_equal(first, session_rows(session, parts, steps))

    @pytest.mark.parametrize(
        "lengths",
        [(40,), (37, 3), (1, 2, 1, 2, 1, 1), (2, 33)],
        ids=["beyond a window", "a short last part", "within a kernel", "short, then long"],
    )
    def test_however_a_prompt_is_cut_it_is_the_same(
        self, exported: Any, lengths: tuple[int, ...]
    ) -> None:
        *_, manifest, session = exported
        session_rows(session, [tokens(session.max_context, 6)], [])
        ends = np.cumsum(lengths).tolist()
        prompt = tokens(ends[-1])
        parts = [prompt[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        steps = tokens(4, 1)
        expected = expected_rows(exported, parts, steps)
        found = session_rows(session, parts, steps)
        assert np.abs(found - expected).max() <= manifest.parity_bound * expected.std()

    def test_a_second_prompt_goes_on_from_a_warm_state(self, exported: Any) -> None:
        *_, manifest, session = exported
        first, answer, second, steps = tokens(20), tokens(3, 1), tokens(9, 2), tokens(2, 3)
        expected = expected_rows(exported, [first, *([t] for t in answer), second], steps)
        session.reset()
        session.prefill(session.prepare(first))
        for token in answer:
            session.decode_step(token)
        session.prefill(session.prepare(second))
        found = [session.logits().copy(), *_after(session, steps)]
        assert np.abs(np.stack(found) - expected).max() <= manifest.parity_bound * expected.std()

    def test_a_rejected_draft_is_taken_back(self, exported: Any) -> None:
        """States of convolutions and recurrences cannot step back: taken back is begun again."""
        *_, session = exported
        prompt, draft, steps = tokens(20), tokens(4, 7), tokens(2, 3)
        straight = session_rows(session, [prompt], steps)
        session_rows(session, [prompt, draft], draft)
        np.testing.assert_array_equal(straight, session_rows(session, [prompt], steps))

    @pytest.mark.parametrize("part", ["conv", "router"])
    def test_a_part_that_an_export_lost_would_be_seen(self, exported: Any, part: str) -> None:
        _, _, decoder, *_ = exported
        changed = copy.deepcopy(decoder)
        lost = [p for name, p in changed.named_parameters() if part in name]
        if not lost:
            pytest.skip(f"the stack that this engine runs has no {part}")
        for parameter in lost:
            parameter.data.zero_()
        self._is_nearer_than(exported, changed)

    def test_a_router_with_a_softmax_would_be_seen(self, exported: Any) -> None:
        _, _, decoder, *_ = exported
        if not any(isinstance(module, MoE) for module in decoder.modules()):
            pytest.skip("the stack that this engine runs has no experts")
        with _softmax_routers():
            wrong = expected_rows(exported, [tokens(20)], tokens(4, 1))
        self._is_nearer_than(exported, wrong)

    @staticmethod
    def _is_nearer_than(exported: Any, wrong: Decoder | Logits) -> None:
        """The artifact is by far nearer to its own decoder than to what a fault would give."""
        runtime, quant, _, folder, _, session = exported
        parts, steps = [tokens(20)], tokens(4, 1)
        if isinstance(wrong, Decoder):
            wrong = _reference(runtime, quant, wrong, folder, parts, steps)
        right, found = expected_rows(exported, parts, steps), session_rows(session, parts, steps)
        assert _rms(found - wrong) > 2 * _rms(found - right)


def _after(session: Session, steps: Sequence[int]) -> Iterator[Logits]:
    for token in steps:
        session.decode_step(token)
        yield session.logits().copy()


def _rms(difference: Logits) -> float:
    return float(np.sqrt(np.mean(difference**2)))


@contextmanager
def _softmax_routers() -> Iterator[None]:
    """While inside, experts are weighted by a softmax over the chosen ones, as Mixtral's are."""
    chosen = MoE.route

    def softmaxed(moe: MoE, x_XD: Tensor) -> tuple[Tensor, Tensor]:
        _, experts_XK = chosen(moe, x_XD)
        return moe.router(x_XD).gather(-1, experts_XK).softmax(-1), experts_XK

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MoE, "route", softmaxed)
        yield
