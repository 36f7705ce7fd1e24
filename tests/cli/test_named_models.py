"""MODEL on a command line means the same to every command that takes one."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from archloop.checkpoints.loading import load
from archloop.checkpoints.saving import save
from archloop.cli import app, models
from archloop.errors import UserError
from archloop.proxy.mixture import ProxyData
from archloop.proxy.weights import add_tokenizer, keep
from archloop.runtimes.artifact import read_manifest
from archloop.runtimes.exporting import build_random
from archloop.search.study import Study
from archloop.stack import presets
from archloop.store.record import TrialRecord
from archloop.text import tokenizers
from archloop.text.special_tokens import SpecialTokens
from search.stand_in import StandIn, no_time, recipe

TEXT = ["a study is what is measured and trained\n" * 20]


class Kept(NamedTuple):
    """A study of which one trial has its proxy, by folder and record."""

    folder: Path
    trial: TrialRecord
    other: TrialRecord


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.train(TEXT, 262)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tokenizer: tokenizers.Tokenizer) -> Kept:
    runs = tmp_path_factory.mktemp("runs")
    record = Study(recipe(num_trials=3), runs, evaluator=StandIn(), clock=no_time).run()
    trial, other, *_ = record.trials
    none_T = np.empty(0, np.int32)
    data = ProxyData(262, 262, {}, none_T, none_T, tokenizer.num_bytes_V, "", tokenizer)
    proxy = build_random(trial.proxy_spec.replace(vocab_size=262), 1)
    keep(proxy, data, runs / "test" / "trials" / f"{trial.number:06d}" / "weights")
    return Kept(runs / "test", trial, other)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


# --- what is meant ------------------------------------------------------------------------------


def test_a_preset_a_spec_and_a_checkpoint(tmp_path: Path, study: Kept) -> None:
    preset = models.find("lfm2-350m")
    assert (preset.source, preset.spec) == ("spec", presets.load("lfm2-350m"))
    file = study.folder / "trials" / "000000" / "spec.json"
    assert models.find(str(file)).spec == study.trial.spec
    save(build_random(study.trial.spec, 0), tmp_path / "model", "archloop")
    found = models.find(str(tmp_path / "model"))
    assert (found.source, found.spec) == ("checkpoint", study.trial.spec)
    assert found.weights() == tmp_path / "model"


def test_a_trial_is_its_spec_to_ship_and_to_ask_its_proxy(study: Kept) -> None:
    found = models.find(str(study.folder), str(study.trial.number))
    assert (found.source, found.spec, found.label) == ("trial", study.trial.spec, "test-trial-0")
    assert found.decoder(0)[1] == "random"
    assert found.is_proxy()
    loaded = found.text_model()
    assert {p.dtype for p in loaded.decoder.parameters()} == {torch.float32}
    reference = models.find(str(study.folder), "reference")
    assert reference.spec == Study(recipe(num_trials=3), study.folder.parent).read().reference.spec  # type: ignore[union-attr]


def test_a_trained_trial_is_its_checkpoint(study: Kept, tmp_path: Path) -> None:
    trained = study.folder / "trials" / f"{study.other.number:06d}" / "trained"
    save(build_random(study.other.spec, 5), trained, "archloop")
    found = models.find(str(study.folder), str(study.other.number))
    decoder, weights = found.decoder(0)
    assert weights == "checkpoint"
    expected = build_random(study.other.spec, 5).embedding.weight
    assert torch.equal(decoder.embedding.weight, expected)
    assert (found.weights(), found.is_proxy()) == (trained, False)


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (None, "say which of its trials: --trial 7"),
        ("9", "has no trial 9; it has 0 to 2, and reference"),
        ("x", "must be a number, or reference"),
    ],
)
def test_trials_that_are_not_there(study: Kept, trial: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.find(str(study.folder), trial)


def test_a_trial_without_weights_says_what_brings_them(study: Kept) -> None:
    status, _, problem = run("generate", str(study.folder), "--trial", "2", "--prompt", "a")
    assert status == 2
    assert "did not keep its proxy" in problem
    assert "archloop train" in problem


def test_a_trial_of_no_study(tmp_path: Path) -> None:
    for name in ("lfm2-350m", str(tmp_path)):
        status, _, problem = run(
            "export", name, "--trial", "1", "--runtime", "torch_eager", "-o", "x"
        )
        assert (status, "of a study" in problem) == (2, True)


# --- every command ------------------------------------------------------------------------------


def test_a_trials_proxy_is_scored(study: Kept, tmp_path: Path) -> None:
    asked = ["eval", str(study.folder), "--trial", "0", "--tasks", "addition", "--limit", "2"]
    status, told, note = run(*asked, "--output", str(tmp_path / "kept"), "--json")
    assert status == 0
    assert json.loads(told)["model"] == "test-trial-0"
    assert json.loads(told)["identity"].startswith("weights:")
    assert "its trained proxy is asked" in note


def test_a_trials_proxy_speaks(study: Kept) -> None:
    asked = ["generate", str(study.folder), "--trial", "0", "--prompt", "a study"]
    status, told, _ = run(*asked, "--max-new-tokens", "4", "--temperature", "0")
    assert status == 0
    assert told.endswith("\n")


def test_a_trial_is_exported_at_ship_width_with_random_weights(study: Kept, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    asked = ["export", str(study.folder), "--trial", "0", "--runtime", "torch_eager"]
    status, told, _ = run(*asked, "-o", str(out), "--json")
    assert (status, json.loads(told)["weights"]) == (0, "random")
    assert read_manifest(out).spec == study.trial.spec


def test_a_trial_is_timed_by_its_spec_to_ship(study: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(spec: object, *_: object, **__: object) -> None:
        assert spec == study.trial.spec
        raise UserError("far enough")

    monkeypatch.setattr("archloop.profiling.profile", measured)
    status, _, problem = run("profile", str(study.folder), "--trial", "0")
    assert (status, "far enough" in problem) == (2, True)


# --- artifacts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(
    study: Kept, tokenizer: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A checkpoint with a tokenizer, and what was exported of it."""
    folder = tmp_path_factory.mktemp("models")
    source, out = folder / "model", folder / "artifact"
    tokens = SpecialTokens(eos=(tokenizer.end_of_text,))
    decoder = build_random(study.trial.spec.replace(vocab_size=262), 2)
    save(decoder, source, "archloop", tokens=tokens)
    add_tokenizer(tokenizer, source)
    status, _, problem = run("export", str(source), "--runtime", "torch_eager", "-o", str(out))
    assert status == 0, problem
    return source, out


def test_an_artifact_scores_as_its_checkpoint(artifact: tuple[Path, Path], tmp_path: Path) -> None:
    scores = []
    for index, model in enumerate(artifact):
        asked = ["eval", str(model), "--tasks", "agreement", "--limit", "4", "--json"]
        status, told, problem = run(*asked, "--output", str(tmp_path / str(index)))
        assert status == 0, problem
        found = json.loads(told)
        assert found["identity"].startswith(("weights:", "artifact:")[index])
        scores.append({name: score["value"] for name, score in found["scores"].items()})
    assert scores[0] == scores[1]


def test_an_artifact_speaks_as_its_checkpoint(artifact: tuple[Path, Path]) -> None:
    replies = [
        run("generate", str(model), "--prompt", "a study", "--max-new-tokens", "6")
        for model in artifact
    ]
    assert replies[0][0] == 0, replies
    assert replies[0] == replies[1]


def test_an_artifact_is_timed_by_its_spec_and_not_exported_again(
    artifact: tuple[Path, Path], tmp_path: Path
) -> None:
    assert models.find(str(artifact[1])).spec == load(artifact[0]).spec
    asked = ["export", str(artifact[1]), "--runtime", "torch_eager", "-o", str(tmp_path / "x")]
    status, _, problem = run(*asked)
    assert (status, "name what it was exported from" in problem) == (2, True)
