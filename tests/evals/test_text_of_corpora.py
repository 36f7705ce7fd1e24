"""Evaluations on text that is fetched: asked where it is, left out and named where it is not."""

import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.errors import UserError
from archloop.evals import contamination, suites
from archloop.evals.base import Evaluation
from archloop.evals.codecs import ByteCodec
from archloop.evals.tasks.bits_per_byte import BitsPerByte
from archloop.evals.tasks.corpus_facts import CorpusFacts
from archloop.evals.tasks.language_text import LanguageText
from archloop.evals.tasks.text_position import TextPosition
from archloop.testing import EvaluationContract
from archloop.testing.answering import Answering
from archloop.text.fetch.sources import LANGUAGES


def write_corpus(folder: Path) -> None:
    """Help in every language, of two hundred documents."""
    folder.mkdir(parents=True)
    for language in LANGUAGES:
        with lzma.open(folder / f"help_{language}.jsonl.xz", "wt", encoding="utf-8") as stream:
            for number in range(400):
                text = f"{language}: Übersetzung des Satzes {number}. " * 60
                stream.write(json.dumps({"text": text}) + "\n")


@pytest.fixture(scope="class")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("languages") / "corpora"
    write_corpus(folder)
    TestLanguageText.corpora = folder


@pytest.mark.usefixtures("corpus")
class TestLanguageText(EvaluationContract):
    """Every language keeps the contract of evaluations."""

    names = ("language_text",)
    corpora: ClassVar[Path]

    @classmethod
    def entries(cls) -> dict[str, Callable[[], Evaluation]]:
        return {language: partial(cls._made, language) for language in LANGUAGES}

    @classmethod
    def _made(cls, language: str) -> Evaluation:
        return LanguageText(
            LanguageText.Config(language=language, folder=str(cls.corpora), num_chars=256)
        )


@pytest.fixture(scope="class")
def facts(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("english") / "wordnet.jsonl.xz"
    with lzma.open(file, "wt", encoding="utf-8") as stream:
        for number in range(300):
            lines = [f"thing{number}-{i}: a thing of kind {number}-{i}; more" for i in range(9)]
            shared = f"some, other: two words for number {number} are left out"
            stream.write(json.dumps({"text": "\n\n".join([*lines, shared])}) + "\n")
    TestCorpusFacts.file = file


@pytest.mark.usefixtures("facts")
class TestCorpusFacts(EvaluationContract):
    """Facts of the training text, both ways."""

    names = ("corpus_facts",)
    file: ClassVar[Path]

    @classmethod
    def entries(cls) -> dict[str, Callable[[], Evaluation]]:
        return {ask: partial(cls._made, ask) for ask in ("definition", "word")}

    @classmethod
    def _made(cls, ask: str) -> Evaluation:
        return CorpusFacts(CorpusFacts.Config.model_validate({"ask": ask, "file": str(cls.file)}))

    def test_its_facts_stay_in_the_training_text(self) -> None:
        made = self._made("definition")
        assert not list(contamination.texts({"facts": made}))
        assert isinstance(made, CorpusFacts)
        (question,) = made.questions("test", 0, 1)
        assert question.context.startswith("thing")
        assert "; more" not in question.choices[question.right]


@pytest.mark.parametrize("quarter", [1, 2, 3, 4])
def test_a_quarter_of_a_document_is_scored_by_itself(tmp_path: Path, quarter: int) -> None:
    """Here a model that knows each character of one quarter, and of no other."""
    for number in range(80):
        text = "".join("abcdé"[number % 5] * 100 for _ in range(4))
        (tmp_path / f"{number}.txt").write_text(f"{text}{number:03}" * 2)

    class Knows(Answering):
        def logs(self, row: Any) -> Any:
            cuts = np.arange(1, len(row))
            known = (cuts - 1) * 4 // (len(row) - 1) == quarter - 1
            return np.where(known, 0.0, -np.log(2) * 8)

    corpus = {"source": "files", "paths": [str(tmp_path)], "heldout_share": 0.4}
    values = []
    for asked in (1, 2, 3, 4):
        settings = {"quarter": asked, "corpus": corpus, "num_chars": 400}
        score = TextPosition(TextPosition.Config.model_validate(settings)).run(Knows(), limit=20)
        values.append(score.value)
    assert values[quarter - 1] == pytest.approx(0.0, abs=0.1)
    assert sum(values) == pytest.approx(24.0, abs=0.3)


@pytest.mark.parametrize("piece", ["é" * 64, "€" * 64, "x" + "é" * 63])
def test_tokens_that_are_parts_of_a_character_are_given_whole(piece: str) -> None:
    """A model that guesses bytes costs 8 bits for each, whatever character comes first."""

    class Guessing(Answering):
        start = ()
        codec = ByteCodec()

        def logs(self, row: Any) -> Any:
            return np.full(len(row) - 1, -np.log(2) * 8)

    class Whole(BitsPerByte):
        def pieces(self, *_: object) -> list[str]:
            return [piece] * 2

    class Quarter(TextPosition):
        def pieces(self, *_: object) -> list[str]:
            return [piece] * 2

    quarters = [Quarter(TextPosition.Config(quarter=quarter)) for quarter in (1, 2, 3, 4)]
    for evaluation in (Whole(), *quarters):
        assert evaluation.run(Guessing(), limit=2).value == pytest.approx(8.0)


def test_the_full_suite_has_sixty_scores_and_six_in_each_of_seven_categories() -> None:
    counts: dict[str, int] = {}
    for evaluation in suites.load("full").values():
        counts[evaluation.category] = counts.get(evaluation.category, 0) + 1
    assert sum(counts.values()) >= 60
    assert len([category for category, count in counts.items() if count >= 6]) >= 7


def test_what_was_not_fetched_is_left_out_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ready, left_out = suites.parted(suites.load("full"))
    assert "language_text_de" in left_out
    assert "agreement_de" in ready
    assert "archloop corpus fetch languages" in left_out["language_text_de"]
    write_corpus(tmp_path / "corpora" / "languages")
    ready, left_out = suites.parted(suites.load("full"))
    assert {name for name in ready if name.startswith("language_text")} == {
        f"language_text_{language}" for language in LANGUAGES
    }


def test_asking_by_name_for_what_is_not_here_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", "lfm2-350m", "--suite", "full", "--tasks", "language_text_de"]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UserError) or result.exit_code == 2
    assert "corpus fetch languages" in f"{result.output}{result.exception}"


def test_no_corpus_may_share_the_words_of_an_evaluation() -> None:
    chosen = suites.load("full", ["facts_capital", "instruction_json", "language_text_de"])
    found = list(contamination.texts(chosen))
    facts, instruction = chosen["facts_capital"], chosen["instruction_json"]
    assert len(found) == 4 * facts.num_test + instruction.num_test
    first = facts.questions("test", 0, 1)[0]  # type: ignore[attr-defined]
    assert first.context + first.choices[first.right] in found
