"""What every evaluation must hold, by whichever verb it asks."""

import zlib

import numpy as np
import pytest

from archloop import registry
from archloop.evals import suites
from archloop.evals.base import IGNORE, Task, TaskInBits
from archloop.evals.text_tasks import ChoiceTask, ReplyTask
from archloop.evals.verbs import Likelihood, Model

NUM = 200
ENTRIES = {
    **{name: (name, {}) for name in registry.names("tasks")},
    **{f"full:{name}": entry for name, entry in suites.FULL.items()},
}


class Bytes:
    """Text as bytes: the simplest tokenizer."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


class Answering(Model):
    """A model that asks a function for each verb's answers, and notes which verbs were used."""

    vocab_size = 256
    codec = Bytes()
    start = (0,)

    def __init__(self):
        self.used = set()

    def predict(self, ids_NT, asked_NT):
        self.used.add("predict")
        return self.best(ids_NT, asked_NT)

    def loglikelihood(self, requests):
        self.used.add("loglikelihood")
        return [Likelihood(self.nats(r), False) for r in requests]

    def loglikelihood_rolling(self, rows):
        self.used.add("loglikelihood_rolling")
        return [self.logs(row) for row in rows]

    def generate_until(self, requests):
        self.used.add("generate_until")
        return [self.reply(r) for r in requests]


class Oracle(Answering):
    """Knows every answer of an evaluation's test split."""

    def __init__(self, evaluation, seed):
        super().__init__()
        if isinstance(evaluation, Task):
            self.rows = evaluation.examples("test", seed, NUM)
        else:
            self.questions = getattr(evaluation, "questions", lambda *_: [])("test", seed, NUM)
        if isinstance(evaluation, ChoiceTask):
            self.right = {q.context + q.choices[q.right] for q in self.questions}
        if isinstance(evaluation, ReplyTask):
            self.replies = {q.prompt: q.answers[0] for q in self.questions}

    def best(self, ids_NT, asked_NT):
        assert np.array_equal(ids_NT, self.rows.ids_NT)
        return self.rows.targets_NT

    def nats(self, request):
        text = self.codec.decode([*request.prefix[1:], *request.continuation])
        return 0.0 if text in self.right else -9.0

    def logs(self, row):
        return np.zeros(len(row) - 1)

    def reply(self, request):
        return " " + self.replies[self.codec.decode(request.ids[1:])]


class Guesser(Answering):
    """Answers by a hash of what it is asked, so equally often right wherever it is asked."""

    def __init__(self, evaluation, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.task = evaluation

    def best(self, ids_NT, asked_NT):
        targets_NT = self.task.examples("test", 1, 4000).targets_NT
        # It knows which tokens answer at each place, and nothing about the example.
        out_NT = np.zeros_like(ids_NT)
        for place in range(ids_NT.shape[1]):
            answers = targets_NT[:, place][targets_NT[:, place] >= 0]
            if len(answers):
                out_NT[:, place] = self.rng.choice(np.unique(answers), size=len(ids_NT))
        return out_NT

    def nats(self, request):
        return -float(zlib.crc32(bytes(request.continuation) + bytes(request.prefix)))

    def logs(self, row):
        bits = self.task.chance if isinstance(self.task, TaskInBits) else 8
        return np.full(len(row) - 1, -bits * np.log(2))

    def reply(self, request):
        return str(self.rng.integers(100))


@pytest.fixture(params=ENTRIES, scope="module")
def evaluation(request):
    return suites.make(*ENTRIES[request.param])


def test_a_perfect_oracle_scores_perfect(evaluation):
    score = evaluation.run(Oracle(evaluation, 5), seed=5, limit=NUM)
    assert score.value == pytest.approx(score.perfect)
    assert score.normalized == pytest.approx(1.0)


def test_a_guesser_scores_chance_within_its_error(evaluation):
    score = evaluation.run(Guesser(evaluation, 0), seed=5, limit=NUM)
    # A chance of nothing at all may still be met by luck.
    slack = 0.05 if isinstance(evaluation, ReplyTask) else 0.0
    assert score.value == pytest.approx(score.chance, abs=4 * score.standard_error + slack)


def test_it_asks_by_its_own_verb_alone(evaluation):
    oracle = Oracle(evaluation, 5)
    evaluation.run(oracle, seed=5, limit=NUM)
    assert oracle.used == {evaluation.verb}


def test_more_examples_shrink_the_error(evaluation):
    few = evaluation.run(Guesser(evaluation, 0), limit=50)
    many = evaluation.run(Guesser(evaluation, 0), limit=NUM)
    assert many.num_examples <= NUM
    assert many.standard_error <= few.standard_error * 1.05


def test_it_says_what_it_is(evaluation):
    assert evaluation.category
    assert evaluation.licence
    assert evaluation.version >= 1
    assert evaluation.chance != evaluation.perfect


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_are_a_function_of_their_arguments(evaluation, split):
    if not isinstance(evaluation, (ChoiceTask, ReplyTask)):
        pytest.skip("asks no questions in text")
    first = evaluation.questions(split, 7, 30)
    assert first == evaluation.questions(split, 7, 30)
    assert first != evaluation.questions(split, 8, 30)
    assert len(first) == 30


def test_no_test_question_is_one_of_training(evaluation):
    if not isinstance(evaluation, (ChoiceTask, ReplyTask)):
        pytest.skip("asks no questions in text")
    train, test = (set(evaluation.questions(split, 0, 150)) for split in ("train", "test"))
    assert not train & test


def test_answers_scored_in_bits_stand_in_the_rows(evaluation):
    if not isinstance(evaluation, TaskInBits):
        pytest.skip("is not scored in bits")
    for split in ("train", "test"):
        ids_NT, targets_NT = evaluation.examples(split, 0, 50)
        asked_NT = targets_NT[:, :-1] != IGNORE
        assert np.array_equal(targets_NT[:, :-1][asked_NT], ids_NT[:, 1:][asked_NT])


def test_longer_rows_are_the_same_task(evaluation):
    if not isinstance(evaluation, Task):
        pytest.skip("has no rows")
    longer = evaluation.at_length(4)
    assert longer.vocab_size == evaluation.vocab_size
    short_T, long_T = (task.examples("test", 0, 4).ids_NT.shape[1] for task in (evaluation, longer))
    assert long_T == pytest.approx(4 * short_T, abs=4)
