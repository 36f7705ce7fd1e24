"""An engine is not refused for what eager PyTorch's own float32 rounds."""

import numpy as np
import pytest

from archloop.runtimes.exporting import build_random
from archloop.runtimes.parity import Case, decoded, eager_logits, encoded, make_case, settled
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

BLOCK = BlockSpec(
    mixers=(MixerSpec(name="gated_deltanet"),), channel_mixer=ChannelMixerSpec(name="swiglu")
)
BOUND = 1e-4


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build_random(StackSpec(d_model=64, vocab_size=96, blocks=(BLOCK,) * 2), 0)


@pytest.fixture(scope="module")
def exact(decoder: Decoder) -> np.ndarray:
    case = make_case(decoder, "float32", BOUND)
    prompt = [token for part in case.parts for token in part]
    return eager_logits(decoder, prompt, list(case.steps), "float64")


def moved(exact: np.ndarray, by: float) -> np.ndarray:
    """Logits one of which is off by so many standard deviations."""
    rows = exact.copy()
    rows[3, 5] += by * exact.std()
    return rows


def rounding(decoder: Decoder, exact: np.ndarray, by: float) -> Case:
    """A case whose own logits are off."""
    rows = encoded(moved(exact, by))
    return make_case(decoder, "float32", BOUND).model_copy(update={"rows": rows})


def test_float64_decides_where_float32_lies_apart(decoder: Decoder, exact: np.ndarray) -> None:
    case = rounding(decoder, exact, -0.6 * BOUND)
    rows = moved(exact, 0.8 * BOUND)
    assert case.error(rows) > case.bound
    assert settled(case, rows, decoder) == pytest.approx(0.8 * BOUND, rel=0.05)


def test_the_bound_is_the_same(decoder: Decoder, exact: np.ndarray) -> None:
    case = rounding(decoder, exact, -0.6 * BOUND)
    assert settled(case, moved(exact, 1.1 * BOUND), decoder) > case.bound


def test_nothing_is_computed_where_float32_agrees(
    decoder: Decoder, exact: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = rounding(decoder, exact, 0.2 * BOUND)
    monkeypatch.setattr("archloop.runtimes.parity.eager_logits", None)
    rows = moved(exact, 0.8 * BOUND)
    assert settled(case, rows, decoder) == case.error(rows) < case.bound
    assert decoded(case.rows).shape == rows.shape
