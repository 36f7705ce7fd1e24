"""The tasks that ask for what blocks differ in: recall of many values, and tracking a state."""

import numpy as np
import pytest

from archloop.evals.base import IGNORE
from archloop.evals.tasks.multi_query_recall import MultiQueryRecall
from archloop.evals.tasks.state_tracking import StateTracking, table


def recall(**settings):
    return MultiQueryRecall(MultiQueryRecall.Config(**settings))


@pytest.fixture(scope="module")
def examples():
    return recall().examples("test", 3, 200)


class TestRecall:
    def test_each_answer_is_the_value_of_its_key(self, examples):
        for ids, targets in zip(*examples, strict=True):
            shown = dict(zip(ids[:128:2].tolist(), ids[1:128:2].tolist(), strict=True))
            places = np.flatnonzero(targets != IGNORE)
            assert len(places) == len(shown) == 64
            assert all(shown[int(ids[p])] == targets[p] for p in places)
            assert len(set(ids[places].tolist())) == 64

    def test_counting_values_costs_what_chance_says(self, examples):
        bits = []
        for ids, targets in zip(*examples, strict=True):
            shown = ids[1:128:2].tolist()
            answers = targets[targets != IGNORE].tolist()
            bits += [-np.log2(shown.count(answer) / 64) for answer in answers]
        assert np.mean(bits) == pytest.approx(recall().chance, abs=0.02)

    def test_a_window_of_a_quarter_reaches_few_answers(self, examples):
        """Within 32 tokens of a row of 256, its key was shown for one answer in thirty."""
        near = [
            place - np.flatnonzero(ids[:place] == ids[place]).max() <= 32
            for ids, targets in zip(*examples, strict=True)
            for place in np.flatnonzero(targets != IGNORE)
        ]
        assert np.mean(near) < 0.04

    def test_training_rows_hold_few_pairs_as_often_as_many(self):
        _, targets_NT = recall().examples("train", 0, 3000)
        sizes, counts = np.unique((targets_NT != IGNORE).sum(1), return_counts=True)
        assert sizes.tolist() == [4, 8, 16, 32, 64]
        assert counts.min() > 500

    def test_longer_rows_hold_as_many_pairs(self):
        ids_NT, targets_NT = recall().at_length(4).examples("test", 0, 20)
        assert ids_NT.shape[1] == 1024
        assert ((targets_NT != IGNORE).sum(1) == 64).all()

    @pytest.mark.parametrize(
        "settings, expected",
        [
            ({"num_keys": 32}, "make it larger"),
            ({"seq_len": 128}, "give at least 256"),
            ({"vocab_size": 5}, "leave it out"),
        ],
    )
    def test_settings_are_checked(self, settings, expected):
        with pytest.raises(ValueError, match=expected):
            MultiQueryRecall.Config(**settings)


class TestGroups:
    @pytest.mark.parametrize(
        "group, order, commutes",
        [("parity", 2, True), ("mod5", 5, True), ("s3", 6, False), ("s5", 120, False)],
    )
    def test_tables_are_groups(self, group, order, commutes):
        product = table(group)
        everything = np.arange(order)
        assert product.shape == (order, order)
        assert (np.sort(product, 0) == everything[:, None]).all()
        assert (np.sort(product, 1) == everything).all()
        assert (product[0] == everything).all()
        assert (product[:, 0] == everything).all()
        assert (product == product.T).all() == commutes
        rng = np.random.default_rng(0)
        a, b, c = rng.integers(order, size=(3, 500))
        assert (product[product[a, b], c] == product[a, product[b, c]]).all()

    @pytest.mark.parametrize("group", ["parity", "mod5", "s3", "s5"])
    def test_answers_are_the_running_product_in_ids_of_their_own(self, group):
        task = StateTracking(StateTracking.Config(group=group, seq_len=32))
        ids_NT, targets_NT = task.examples("test", 0, 30)
        product, size = table(group), len(table(group))
        assert task.vocab_size == 2 * size
        for ids, targets in zip(ids_NT, targets_NT, strict=True):
            state = 0
            for place, element in enumerate(ids):
                state = product[state, element]
                assert targets[place] == (state + size if place >= 16 else IGNORE)
