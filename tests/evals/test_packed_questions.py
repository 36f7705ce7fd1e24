"""Examples drawn ahead: the same scores without what the questions were drawn from."""

import json
import re

import pytest

from archloop.errors import UserError
from archloop.evals import packing, suites
from archloop.testing.answering import Answering, Guesser

NAMES = ("facts_capital", "instruction_contains", "needle_multi_value", "bits_per_byte", "addition")
SEED, LIMIT = 3, 6


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "packed.jsonl"
    packing.pack(suites.load("full", NAMES), file, SEED, LIMIT)
    return file


def test_scores_are_those_of_the_suite(file):
    packed = packing.unpack(file, SEED, LIMIT)
    assert list(packed) == list(NAMES)
    for name, evaluation in suites.load("full", NAMES).items():
        expected = evaluation.run(Guesser(evaluation, 0), seed=SEED, limit=LIMIT)
        assert packed[name].run(Guesser(evaluation, 0), seed=SEED, limit=LIMIT) == expected


def test_questions_are_the_drawn_ones_and_nothing_else(file):
    packed = packing.unpack(file, SEED, LIMIT)
    for name, evaluation in suites.load("full", NAMES[:3]).items():
        drawn = evaluation.questions("test", SEED, LIMIT)
        assert packed[name].questions("test", SEED, LIMIT) == drawn
        assert hash(tuple(packed[name].questions("test", SEED, LIMIT)))
        for split, seed in (("train", SEED), ("test", SEED + 1)):
            with pytest.raises(UserError, match="test examples of seed 3 alone"):
                packed[name].questions(split, seed, LIMIT)


def test_what_misses_its_data_is_not_packed_but_needs_none_when_unpacked(tmp_path, monkeypatch):
    class Here(suites.make("corpus_facts", {}).__class__):
        def missing(self):
            return ""

        def questions(self, split, seed, num_examples):
            return [packing.Choice("word:", (" a", " b"), 1)] * num_examples

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="archloop corpus fetch"):
        packing.pack({"facts": suites.make("corpus_facts", {})}, tmp_path / "x", 0, 2)
    packing.pack({"facts": Here()}, tmp_path / "x", 0, 2)
    (facts,) = packing.unpack(tmp_path / "x", 0, 2).values()
    assert not facts.missing()
    assert facts.questions("test", 0, 2) == [("word:", (" a", " b"), 1)] * 2


def test_text_may_hold_every_line_break(tmp_path):
    odd = "one\u2028two\u2029three\x85four\x0cfive\nsix\r\n"

    class Here(suites.make("corpus_facts", {}).__class__):
        def missing(self):
            return ""

        def questions(self, split, seed, num_examples):
            return [packing.Choice(f"{odd}:", (" a", " b"), 1)] * num_examples

    packing.pack({"facts": Here(), "again": Here()}, tmp_path / "x", 0, 2)
    for facts in packing.unpack(tmp_path / "x", 0, 2).values():
        assert facts.questions("test", 0, 2) == Here().questions("test", 0, 2)


def test_lengths_in_tokens_stay_as_they_were_drawn(tmp_path):
    """A model whose tokens are of several characters is asked the packed questions all the same."""
    task = suites.make("needle", {"variant": "single", "num_tokens": 1024})
    packing.pack({"needle": task}, tmp_path / "x", 0, 4)
    (found,) = packing.unpack(tmp_path / "x", 0, 4).values()

    class Pieces:
        def encode(self, text):
            return [1] * -(-len(text) // 4)

        def decode(self, ids):
            return ""

    class Asked(Answering):
        codec = Pieces()

        def reply(self, request):
            lengths.append(len(request.ids))
            return ""

    lengths = []
    found.run(Asked(), limit=4)
    prompts = [question.prompt for question in task.questions("test", 0, 4)]
    assert lengths == [1 + len(Pieces().encode(prompt)) for prompt in prompts]


def test_other_questions_are_other_data(file):
    (first, *_) = packing.unpack(file, SEED, LIMIT).values()
    lines = file.read_text().splitlines()
    changed = json.loads(lines[0])
    changed["examples"][0][0] += "?"
    file.write_text(json.dumps(changed))
    (again,) = packing.unpack(file, SEED, LIMIT).values()
    assert first.data_digest != again.data_digest != ""


def test_tasks_of_rows_stand_by_their_settings(tmp_path):
    task = suites.make("state_tracking", {"group": "s3"})
    packing.pack({"s3": task}, tmp_path / "x", 0)
    (found,) = packing.unpack(tmp_path / "x", 0).values()
    assert found.config == task.config


def test_malformed_lines_are_counted_by_number(file, caplog):
    file.write_text("{broken\n" + file.read_text() + '{"name": "x"}\n')
    assert list(packing.unpack(file, SEED, LIMIT)) == list(NAMES)
    assert "line 1 is no packed evaluation" in caplog.text
    assert f"line {len(NAMES) + 2} is no packed evaluation" in caplog.text


def test_another_seed_number_version_or_form_is_said(file, tmp_path):
    with pytest.raises(UserError, match="holds examples of seed 3 and limit 6"):
        packing.unpack(file, SEED, None)
    with pytest.raises(UserError, match="cannot be read"):
        packing.unpack(tmp_path / "none", 0, None)
    lines = file.read_text().splitlines()
    file.write_text(re.sub(r'"version":\d+', '"version":99', lines[0], count=1))
    with pytest.raises(UserError, match=r"was packed at version 99 and is at \d"):
        packing.unpack(file, SEED, LIMIT)
    examples = lines[0].index('"examples":[') + len('"examples":[')
    file.write_text(lines[0][:examples] + "1," + lines[0][examples:])
    with pytest.raises(UserError, match="examples of another form"):
        packing.unpack(file, SEED, LIMIT)
    file.write_text("")
    with pytest.raises(UserError, match="holds no evaluation"):
        packing.unpack(file, SEED, LIMIT)
