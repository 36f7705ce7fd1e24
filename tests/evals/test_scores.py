import math

import numpy as np
import pytest
import torch

from archloop.evals import accuracy, bits_per_byte
from archloop.evals.base import IGNORE, Grades, Score, mean
from archloop.evals.decoder_model import DecoderModel
from archloop.evals.tasks.memorization import Memorization
from archloop.evals.verbs import Shifted
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

SPEC = StackSpec(
    d_model=16,
    vocab_size=12,
    blocks=(
        BlockSpec(
            mixers=(MixerSpec(name="short_conv"),), channel_mixer=ChannelMixerSpec(name="swiglu")
        ),
    ),
)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return Decoder(SPEC).eval()


class TestBitsPerByte:
    def test_equals_a_hand_computation(self, decoder):
        windows_NT = np.random.default_rng(0).integers(12, size=(5, 8))
        num_bytes_V = np.arange(12) % 4
        bits = num_bytes = 0.0
        for row in windows_NT.tolist():
            for place in range(1, 8):
                logits = decoder(torch.tensor([row[:place]]))[0, -1]
                bits -= math.log2(logits.softmax(0)[row[place]].item())
                num_bytes += num_bytes_V[row[place]]
        score = bits_per_byte.measure(DecoderModel(decoder, batch_size=2), windows_NT, num_bytes_V)
        assert score.value == pytest.approx(bits / num_bytes, rel=1e-5)
        assert score.num_examples == 5

    def test_guessing_bytes_costs_eight_bits(self):
        score = bits_per_byte.score(np.full(10, 8.0 * 30), np.full(10, 30))
        assert score.value == score.chance == 8.0
        assert score.normalized == 0.0

    def test_better_is_less(self):
        good = bits_per_byte.score(np.array([30.0, 31.0]), np.array([20, 21]))
        bad = bits_per_byte.score(np.array([60.0, 61.0]), np.array([20, 21]))
        assert good.normalized > bad.normalized > 0
        assert good.signal > 3

    def test_standard_error_by_bootstrap(self):
        rng = np.random.default_rng(0)
        bytes_N = rng.integers(100, 300, 400)
        bits_N = bytes_N * 2.0 + rng.normal(0, 30, 400)
        score = bits_per_byte.score(bits_N, bytes_N)
        draws = rng.integers(400, size=(4000, 400))
        means = bits_N[draws].sum(1) / bytes_N[draws].sum(1)
        assert score.standard_error == pytest.approx(means.std(), rel=0.1)

    def test_windows_spread_over_the_text_without_overlap(self):
        windows_NT = bits_per_byte.windows(np.arange(1000), 7, 20)
        assert windows_NT.shape == (7, 21)
        assert (np.diff(windows_NT, axis=1) == 1).all()
        assert windows_NT[0, 0] == 0
        assert windows_NT[-1, -1] == 999
        assert len(np.unique(windows_NT)) == windows_NT.size

    def test_short_text(self):
        assert bits_per_byte.windows(np.arange(50), 100, 9).shape == (5, 10)
        with pytest.raises(ValueError, match="more text"):
            bits_per_byte.windows(np.arange(19), 100, 9)


class TestRepeatedPairs:
    def test_pairs_are_those_of_a_plain_search(self):
        windows_NT = np.random.default_rng(1).integers(5, size=(6, 40))
        found_NT = bits_per_byte.completes_repeated_pair(windows_NT)
        for row, found in zip(windows_NT.tolist(), found_NT.tolist(), strict=True):
            seen = set()
            for place in range(39):
                pair = (row[place], row[place + 1])
                assert found[place] == (pair in seen)
                seen.add(pair)

    def test_parts_add_up_and_tell_recall_from_the_rest(self):
        rng = np.random.default_rng(2)
        windows_NT = rng.integers(12, size=(8, 30))
        num_bytes_V = np.arange(12) % 4
        again_NT = bits_per_byte.completes_repeated_pair(windows_NT)
        bits_NT = np.where(again_NT, 1.0, 3.0)
        scores = bits_per_byte.parts(bits_NT, windows_NT, num_bytes_V)
        bytes_NT = num_bytes_V[windows_NT[:, 1:]]
        for name, mask, bits in (("repeated", again_NT, 1.0), ("other", ~again_NT, 3.0)):
            expected = bits * mask.sum() / bytes_NT[mask].sum()
            assert scores[f"bits_per_byte_{name}"].value == pytest.approx(expected)
        assert scores["bits_per_byte"].value == pytest.approx(bits_NT.sum() / bytes_NT.sum())
        assert scores["bits_per_byte_repeated"].category == "recall"

    def test_the_whole_is_the_plain_score(self, decoder):
        windows_NT = np.random.default_rng(0).integers(12, size=(5, 20))
        num_bytes_V = np.arange(12) % 4
        scores = bits_per_byte.measure_parts(DecoderModel(decoder), windows_NT, num_bytes_V)
        plain = bits_per_byte.measure(DecoderModel(decoder), windows_NT, num_bytes_V)
        assert scores["bits_per_byte"].value == pytest.approx(plain.value, rel=1e-12)

    def test_a_part_without_tokens_is_said(self):
        with pytest.raises(ValueError, match="longer windows"):
            bits_per_byte.parts(np.ones((2, 2)), np.arange(6).reshape(2, 3), np.ones(6, int))


class TestAccuracy:
    def test_macro_and_micro_by_hand(self):
        targets = np.array([[0, 0, 0, 1, IGNORE], [2, 2, IGNORE, IGNORE, IGNORE]])
        predictions = np.array([[0, 0, 3, 1, 9], [2, 0, 5, 5, 5]])
        # Class 0: 2 of 3; 1: 1 of 1; 2: 1 of 2; 3: predicted, never a target, so 0.
        assert accuracy.macro_accuracy(predictions, targets) == pytest.approx(
            (2 / 3 + 1 + 1 / 2 + 0) / 4
        )
        assert accuracy.micro_accuracy(predictions, targets) == pytest.approx(4 / 6)

    def test_first_id_shifts_a_task_into_its_own_vocabulary(self, decoder):
        task = Memorization(Memorization.Config(vocab_size=5, seq_len=4))
        examples = task.examples("test", 0, 20)
        value = int(task.value_of_key[0])
        asked = []

        class Constant(DecoderModel):
            def predict(self, ids_NT, asked_NT):
                asked.append(ids_NT)
                return np.full_like(ids_NT, 7 + value)

        score = task.run(Shifted(Constant(decoder), 7, 5), limit=20)
        assert np.array_equal(asked[0], examples.ids_NT + 7)
        expected = (examples.targets_NT[:, 1::2] == value).mean()
        assert score.value == pytest.approx(expected)

    def test_examples_about_the_same_are_no_surer_than_one_of_them(self):
        values_C = np.random.default_rng(0).integers(2, size=20).astype(float)
        once = Grades(values_C)
        again = Grades(np.repeat(values_C, 10), clusters_N=np.repeat(np.arange(20), 10))
        assert mean(again) == pytest.approx(mean(once))
        assert mean(once)[1] == pytest.approx(values_C.std(ddof=1) / math.sqrt(20))
        assert mean(Grades(np.ones(40), clusters_N=np.arange(40) % 4)) == (1.0, 1 / 8)

    def test_equal_scores_leave_some_error(self):
        score = Memorization().score_of(Grades(np.ones(100)))
        assert score.standard_error == pytest.approx(1 / 200)


def test_score_says_how_far_above_chance():
    score = Score(
        value=0.3, standard_error=0.05, chance=0.1, perfect=1.0, num_examples=9, category="recall"
    )
    assert score.signal == pytest.approx(4.0)
    assert score.normalized == pytest.approx(0.2 / 0.9)
