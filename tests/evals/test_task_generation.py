"""Each generator against a slow, independent reading of the protocol, token by token."""

import numpy as np
import pytest

from archloop import registry
from archloop.evals import generation
from archloop.evals.base import IGNORE, Examples
from archloop.evals.tasks.fuzzy_in_context_recall import _motifs
from archloop.evals.tasks.mqar import _distinct


def make(name, **settings):
    task_class = registry.get("tasks", name)
    return task_class(task_class.Config(**settings))


def recall_answers(ids, num_keys, num_tokens):
    """Targets re-derived from a row's inputs alone: a dictionary filled from left to right.

    The last token is a key whose value is not in the inputs; it must have been shown.
    """
    shown, expected = {}, []
    for key, value in zip(ids[0::2], [*ids[1::2], None], strict=True):
        if key >= num_tokens:
            assert value is None or value >= num_tokens, "noise stands in pairs"
            expected += [IGNORE, IGNORE]
            continue
        assert key < num_keys, "a key at even places"
        if value is None:
            assert key in shown, "the last key was shown before"
            expected.append(shown[key])
            break
        assert num_keys <= value < num_tokens
        expected += [shown.get(key, IGNORE), IGNORE]
        assert shown.setdefault(key, value) == value, "one value a key"
    return expected


@pytest.mark.parametrize("vocab_size, seq_len", [(16, 128), (4, 24), (33, 64)])
def test_in_context_recall(vocab_size, seq_len):
    task = make("in_context_recall", vocab_size=vocab_size, seq_len=seq_len)
    ids_NT, targets_NT = task.examples("test", 0, 60)
    assert ids_NT.shape[1] == seq_len - 1
    for ids, targets in zip(ids_NT.tolist(), targets_NT.tolist(), strict=True):
        assert targets == recall_answers(ids, vocab_size // 2, vocab_size)


@pytest.mark.parametrize("noise_share", [0.0, 0.2, 0.8])
def test_noisy_in_context_recall(noise_share):
    task = make("noisy_in_context_recall", noise_share=noise_share)
    ids_NT, targets_NT = task.examples("test", 0, 200)
    for ids, targets in zip(ids_NT.tolist(), targets_NT.tolist(), strict=True):
        assert targets == recall_answers(ids, 8, 16)
    assert (ids_NT[:, :-1] >= 16).mean() == pytest.approx(noise_share, abs=0.03)


@pytest.mark.parametrize("name", ["in_context_recall", "noisy_in_context_recall"])
def test_recall_trains_on_every_next_token_or_on_answers(name):
    everything = make(name).examples("train", 0, 40)
    assert np.array_equal(everything.ids_NT[:, 1:], everything.targets_NT[:, :-1])
    answers = make(name, train_on="answers").examples("train", 0, 40)
    assert np.array_equal(answers.ids_NT, everything.ids_NT)
    asked_NT = answers.targets_NT != IGNORE
    assert np.array_equal(answers.targets_NT[asked_NT], everything.targets_NT[asked_NT])
    assert 0 < asked_NT.mean() < 0.5


def test_the_final_key_is_any_shown_key_with_equal_probability():
    task = make("in_context_recall", vocab_size=6, seq_len=24)
    ids_NT, _ = task.examples("test", 0, 6000)
    counts = np.bincount(ids_NT[:, -1], minlength=3) / len(ids_NT)
    assert counts == pytest.approx([1 / 3] * 3, abs=0.03)


def fuzzy_answers(ids, num_keys, pad, key_size):
    """Targets of a test row re-derived from its inputs and the fixed size of its keys.

    Motifs of values vary in length; they end where the next key begins. The last value is cut off.
    """
    place = 0
    while ids[place] == pad:
        place += 1
    expected, shown = [IGNORE] * place, {}
    while place < len(ids):
        key = tuple(ids[place : place + key_size])
        assert len(key) == key_size
        assert len(set(key)) == key_size
        assert all(k < num_keys for k in key)
        place += key_size
        value = []
        while place < len(ids) and ids[place] >= num_keys:
            value.append(ids[place])
            place += 1
        assert len(set(value)) == len(value) <= 3
        is_last = place == len(ids)
        answers = list(shown.get(key, [IGNORE] * len(value)))
        if is_last:
            assert key in shown, "the probe was shown before"
            assert answers[: len(value)] == value
            assert len(answers) == len(value) + 1
        else:
            assert shown.setdefault(key, value) == value, "one value a key"
        # The token that answers stands one place later than the one that asks.
        expected += [IGNORE] * (key_size - 1) + answers + ([] if is_last else [IGNORE])
    return expected


@pytest.mark.parametrize("vocab_size, seq_len", [(16, 128), (9, 48), (128, 256)])
def test_fuzzy_in_context_recall(vocab_size, seq_len):
    task = make("fuzzy_in_context_recall", vocab_size=vocab_size, seq_len=seq_len)
    ids_NT, targets_NT = task.examples("test", 0, 80)
    assert ids_NT.shape[1] == seq_len
    num_keys = (vocab_size - 1) // 2
    for ids, targets in zip(ids_NT.tolist(), targets_NT.tolist(), strict=True):
        assert targets == fuzzy_answers(ids, num_keys, vocab_size - 1, 3)


def test_fuzzy_training_has_keys_of_all_sizes_equally_often():
    task = make("fuzzy_in_context_recall", vocab_size=64)
    ids_NT, targets_NT = task.examples("train", 0, 400)
    assert np.array_equal(ids_NT[:, 1:], targets_NT[:, :-1])
    sizes = []
    for row in ids_NT:
        row = row[row != 63]
        edges = np.flatnonzero(np.diff(np.r_[0, row < 31, 0].astype(int)))
        sizes += list((edges[1::2] - edges[0::2])[:-1])
    shares = np.bincount(sizes, minlength=4)[1:4] / len(sizes)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.02)


def test_fuzzy_motifs_are_uniform():
    rng = np.random.default_rng(0)
    motifs = _motifs(rng, 24_000, 4, 3, full=True)
    _, counts = np.unique(motifs, axis=0, return_counts=True)
    assert len(counts) == 24  # 4 * 3 * 2 ordered choices
    assert counts == pytest.approx(np.full(24, 1000), abs=5 * 1000**0.5)


@pytest.mark.parametrize(
    "vocab_size, seq_len, num_to_copy", [(16, 256, 16), (5, 12, 4), (40, 6, 2)]
)
def test_selective_copying(vocab_size, seq_len, num_to_copy):
    task = make(
        "selective_copying", vocab_size=vocab_size, seq_len=seq_len, num_to_copy=num_to_copy
    )
    ids_NT, targets_NT = task.examples("test", 0, 50)
    copy, blank = vocab_size - 1, vocab_size - 2
    for ids, targets in zip(ids_NT.tolist(), targets_NT.tolist(), strict=True):
        assert len(ids) == seq_len
        at = ids.index(copy)
        assert ids[at + 1 :] == [blank] * num_to_copy
        tokens = [t for t in ids[:at] if t != blank]
        assert ids[at - 1] != blank, "no blank before the copy token"
        assert targets == [IGNORE] * (at + 1) + tokens


def test_selective_copying_strews_blanks_evenly_before_tokens():
    task = make("selective_copying", vocab_size=16, seq_len=29, num_to_copy=4)
    ids_NT, _ = task.examples("test", 0, 4000)
    before = []
    for row in ids_NT:
        places = np.flatnonzero(row[: list(row).index(15)] != 14)
        before.append(np.diff(np.r_[-1, places]) - 1)
    assert np.mean(before, 0) == pytest.approx([5.0] * 4, abs=0.15)


def test_compression():
    ids_NT, targets_NT = make("compression").examples("test", 0, 40)
    assert ids_NT.shape == (40, 32)
    assert (ids_NT[:, -1] == 15).all()
    assert ids_NT[:, :-1].max() == 14
    assert np.array_equal(ids_NT, targets_NT)


def test_memorization():
    task = make("memorization", vocab_size=21)
    seen = {}
    for split in ("train", "test"):
        for ids, targets in zip(*(a.tolist() for a in task.examples(split, 0, 40)), strict=True):
            assert ids[1::2] == [20] * 16
            assert targets[0::2] == [IGNORE] * 16
            for key, value in zip(ids[0::2], targets[1::2], strict=True):
                assert 0 <= key < 10 <= value < 20
                assert seen.setdefault(key, value) == value
    assert len(seen) == 10
    assert len(set(seen.values())) == 10, "different keys have different values"
    other = make("memorization", vocab_size=21, map_seed=1)
    assert not np.array_equal(task.value_of_key, other.value_of_key)


class TestSplits:
    def test_one_row_in_eight_is_for_testing(self):
        ids_NT = np.random.default_rng(0).integers(16, size=(40_000, 12))
        assert generation.is_test(ids_NT).mean() == pytest.approx(1 / 8, abs=0.01)

    def test_belonging_depends_on_every_token(self):
        base = np.zeros((1, 8), dtype=np.int64)
        for place in range(8):
            rows = np.repeat(base, 200, 0)
            rows[:, place] = np.arange(200)
            assert 0 < generation.is_test(rows).sum() < 100

    def test_too_few_different_rows(self):
        def always_the_same(rng, num):
            return Examples(np.zeros((num, 3), dtype=np.int64), np.zeros((num, 3), dtype=np.int64))

        in_test = bool(generation.is_test(np.zeros((1, 3), dtype=np.int64))[0])
        with pytest.raises(ValueError, match="too few different"):
            generation.draw_split(always_the_same, "train" if in_test else "test", 0, 5)

    def test_repeats(self):
        keys = np.random.default_rng(0).integers(5, size=(50, 9))
        expected = [[k in row[:i] for i, k in enumerate(row)] for row in keys.tolist()]
        assert generation.repeats(keys).tolist() == expected


@pytest.mark.parametrize(
    "name, settings",
    [
        ("in_context_recall", {"seq_len": 31}),
        ("in_context_recall", {"vocab_size": 3}),
        ("noisy_in_context_recall", {"noise_vocab_size": 30}),
        ("fuzzy_in_context_recall", {"vocab_size": 6}),
        ("fuzzy_in_context_recall", {"seq_len": 20}),
        ("selective_copying", {"seq_len": 32}),
        ("memorization", {"seq_len": 3}),
    ],
)
def test_impossible_settings_are_refused(name, settings):
    with pytest.raises(ValueError):
        make(name, **settings)


@pytest.mark.parametrize(("seq_len", "num_pairs"), [(64, 4), (64, 16), (128, 8)])
def test_mqar(seq_len, num_pairs):
    task = make("mqar", seq_len=seq_len, num_pairs=num_pairs, vocab_size=64)
    ids_NT, targets_NT = task.examples("test", 0, 60)
    assert ids_NT.shape == (60, seq_len)
    for ids, targets in zip(ids_NT.tolist(), targets_NT.tolist(), strict=True):
        shown = dict(zip(ids[: 2 * num_pairs : 2], ids[1 : 2 * num_pairs : 2], strict=True))
        assert len(shown) == len(set(shown.values())) == num_pairs
        assert all(1 <= key < 32 <= value < 64 for key, value in shown.items())
        asked = {place: key for place, key in enumerate(ids) if place >= 2 * num_pairs and key}
        assert sorted(asked.values()) == sorted(shown)
        assert all(place % 2 == 0 for place in asked)
        assert targets == [shown[asked[t]] if t in asked else IGNORE for t in range(seq_len)]


def test_mqar_asks_close_behind_the_pairs_as_its_power_law_says():
    """The first place is asked as often as drawing without replacement by weights asks it."""
    task = make("mqar", seq_len=64, num_pairs=4, vocab_size=64)
    targets_NT = task.examples("train", 0, 4000).targets_NT
    found_G = (targets_NT[:, 8::2] != IGNORE).mean(0)
    rng = np.random.default_rng(1)
    weights_G = np.arange(1, 29) ** (0.01 - 1)
    expected_G = np.zeros(28)
    for _ in range(4000):
        expected_G[rng.choice(28, 4, replace=False, p=weights_G / weights_G.sum())] += 1 / 4000
    assert found_G == pytest.approx(expected_G, abs=0.035)


def test_mqar_redraws_until_keys_differ():
    """With as many keys as pairs each row is an order of all of them, each as likely."""
    found_NP = _distinct(np.random.default_rng(0), (6000, 3), 5, 8)
    rows, counts = np.unique(found_NP, axis=0, return_counts=True)
    assert len(rows) == 6
    assert counts == pytest.approx([1000] * 6, abs=120)
