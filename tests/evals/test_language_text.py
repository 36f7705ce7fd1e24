"""Evaluations on text that is fetched: asked where it is, left out and named where it is not."""

import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.errors import UserError
from archloop.evals import contamination, suites
from archloop.evals.base import Evaluation
from archloop.evals.tasks.language_text import LanguageText
from archloop.testing import EvaluationContract
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
