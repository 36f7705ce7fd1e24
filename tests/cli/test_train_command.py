"""`archloop train`: a winner becomes a model that every other command takes by its trial."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from archloop.checkpoints.loading import load
from archloop.cli import app
from archloop.files import default_cache_dir
from archloop.search.study import Study
from archloop.stack.spec import StackSpec
from archloop.text import tokenizers
from archloop.training.ship import CHAT_MARKS, ShipRun
from search.stand_in import StandIn, no_time, recipe

QUICK = ["--tokens", "1K", "--seq-len", "32", "--batch-size", "2", "--vocab-size", "300"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    Study(recipe(num_trials=2), runs, evaluator=StandIn(), clock=no_time).run()
    return runs / "test"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    assert str(folder) in str(default_cache_dir())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text")
    for index in range(60):
        words = " ".join(f"entry {index + j} holds {(index + j) ** 2}" for j in range(60))
        (folder / f"{index}.txt").write_text(words)
    return str(folder)


def test_a_trial_is_trained_and_taken_by_the_other_commands(
    study: Path, corpus: str, tmp_path: Path
) -> None:
    asked = ["train", str(study), "--trial", "0", "--corpus", corpus, *QUICK, "--json"]
    status, told, problem = run(*asked)
    assert status == 0, problem
    found = json.loads(told)
    assert (found["num_steps"], found["num_tokens"]) == (16, 1024)
    assert 0 < found["bits_per_byte"] < 9
    trained = study / "trials" / "000000" / "trained"
    assert found["directory"] == str(trained)
    settings = ShipRun.model_validate_json((trained / "training.json").read_bytes()).training
    # What is not said is the recipe's.
    assert (settings.schedule, settings.base_width) == ("wsd", 128)
    status, reply, _ = run(
        "generate", str(study), "--trial", "0", "--prompt", "entry", "--max-new-tokens", "3"
    )
    assert (status, bool(reply.strip())) == (0, True)
    out = tmp_path / "artifact"
    asked = ["export", str(study), "--trial", "0", "--runtime", "torch_eager", "-o", str(out)]
    status, told, problem = run(*asked, "--json")
    assert status == 0, problem
    assert json.loads(told)["weights"] == "checkpoint"
    assert "tokenizer.json" in json.loads(told)["tokenizer"]
    status, again, problem = run("train", f"{study}:0", "--corpus", corpus, *QUICK, "--json")
    assert status == 0, problem
    assert json.loads(again) == found


def test_any_spec_is_trained_into_a_named_folder(study: Path, corpus: str, tmp_path: Path) -> None:
    spec = str(study / "trials" / "000001" / "spec.json")
    out = tmp_path / "model"
    muon = ["--optimizer", "muon", "--learning-rate", "0.01", "--seed", "5"]
    asked = ["train", spec, "--corpus", corpus, *QUICK, *muon]
    status, told, problem = run(*asked, "-o", str(out))
    assert status == 0, problem
    assert "bits a byte" in told
    settings = ShipRun.model_validate_json((out / "training.json").read_bytes())
    assert (settings.training.optimizer, settings.training.learning_rate) == ("muon", 0.01)
    assert {weight.dtype for weight in load(out).parameters()} == {torch.float32}
    status, _, problem = run(*asked)
    assert (status, "--output" in problem) == (2, True)


def test_the_folder_that_a_process_stands_in_has_a_name(
    study: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["train", str(study), "--trial", "1", "--corpus", corpus, *QUICK]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    status, told, problem = run(*asked, "--json", "-o", ".")
    assert status == 0, problem
    assert (here / "training.json").is_file()
    assert json.loads(told)["logs"] == str(tmp_path / "here.training" / "logs")
    status, _, problem = run(*asked, "-o", "/")
    assert (status, "--output / has no name" in problem) == (2, True)


def test_sequences_that_the_model_is_not_made_for_are_refused_before_the_training(
    study: Path, corpus: str, tmp_path: Path
) -> None:
    spec = StackSpec.from_json((study / "trials" / "000001" / "spec.json").read_bytes())
    file = tmp_path / "spec.json"
    file.write_text(spec.replace(max_context=32).to_json())
    asked = ["train", str(file), "--corpus", corpus, "-o", str(tmp_path / "model"), *QUICK]
    status, _, problem = run(*asked, "--seq-len", "33")
    assert status == 2
    assert f"--seq-len 33: {file} is made for contexts of 32" in problem
    assert not list(tmp_path.glob("model*"))
    status, _, problem = run(*asked)
    assert status == 0, problem


def test_a_tokenizer_larger_than_the_model_is_refused_however_it_was_made(
    study: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tokenizers.train(["entry 1 holds 1 and entry 2 holds 4"] * 9, 259, CHAT_MARKS)
    monkeypatch.setattr(tokenizers, "cached", lambda *_, **__: made)
    spec = StackSpec.from_json((study / "trials" / "000001" / "spec.json").read_bytes())
    file = tmp_path / "spec.json"
    file.write_text(spec.replace(vocab_size=258).to_json())
    asked = ["train", str(file), "--corpus", corpus, "-o", str(tmp_path / "model")]
    status, _, problem = run(*asked, *QUICK[:-2])
    assert (status, "a tokenizer of 259 tokens" in problem) == (2, True)
    large = tmp_path / "large.json"
    large.write_text(made.to_json())
    status, _, problem = run(*asked, "--tokens", "1K", "--tokenizer", str(large))
    assert (status, f"--tokenizer {large}: a tokenizer of 259" in problem) == (2, True)
    # What makes a tokenizer smaller is no remedy for one that was given.
    assert "--vocab-size" not in problem


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--tokens 100M, or --hours 2"),
        (["--hours", "nan"], "--hours nan: must be above 0"),
        (["--hours", "inf"], "--hours inf: must be above 0"),
        (["--hours", "0"], "--hours 0.0: must be above 0"),
        (["--tokens", "1" * 310], "is no number of tokens"),
        (["--tokens", "1K", "--vocab-size", "257"], "give at least 259"),
        (["--tokens", "1M", "--hours", "1"], "--tokens 100M, or --hours 2"),
        (["--tokens", "many"], "--tokens 'many' is no number of tokens"),
        (["--tokens", "1K", "--optimizer", "sgd"], "--optimizer"),
        (["--tokens", "1K", "--vocab-size", "100"], "no room for all bytes"),
        (["--tokens", "1K", "--seq-len", "0"], "--seq-len"),
        (["--tokens", "1K", "--batch-size", "0"], "--batch-size"),
        (["--tokens", "1K", "--seed", str(2**64)], "--seed"),
        (["--tokens", "1K", "--vocab-size", "600"], "give a smaller --vocab-size"),
        (["--tokens", "1K", "--tokenizer", "absent.json"], "--tokenizer absent.json"),
    ],
)
def test_options_that_cannot_work(
    study: Path, corpus: str, options: list[str], message: str
) -> None:
    asked = ["train", str(study), "--trial", "1", "--corpus", corpus, *options]
    status, _, problem = run(*asked)
    assert status == 2
    assert message in problem
    assert problem.count("\n") == 1
