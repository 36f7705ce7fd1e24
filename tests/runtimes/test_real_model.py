"""SmolLM2-135M-Instruct, by its chat template, in PyTorch and in every runtime that can run it."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import smollm2
from archloop import registry
from archloop.checkpoints.loading import read_spec
from archloop.cli import app
from archloop.files import default_cache_dir
from archloop.runtimes.base import Runtime

QUESTION = "What is the capital of France?"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return result.stdout


def answer(model: Path) -> str:
    chat = ("--chat", "--temperature", "0", "--max-new-tokens", "8")
    return run("generate", str(model), "--prompt", QUESTION, *chat)


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2.build(default_cache_dir() / "models" / "smollm2-135m-instruct")


@pytest.mark.ci
def test_it_answers_in_pytorch(folder: Path) -> None:
    assert "Paris" in answer(folder)


@pytest.mark.engines
@pytest.mark.timeout(2400)  # ExecuTorch lowers thirty blocks, 17 minutes of a processor
@pytest.mark.parametrize("name", registry.shipped("runtimes"))
def test_it_answers_in_every_runtime_that_can_run_it(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """By its most exact quantisation, whose logits the export itself has compared."""
    engine: Runtime = registry.get("runtimes", name)()
    for missing in (engine.missing_to_export(), engine.missing_to_run()):
        if missing is not None:
            pytest.skip(missing)
    if (why := engine.unsupported(read_spec(folder))) is not None:
        pytest.skip(why)
    if not engine.runs_here():
        pytest.skip(f"{name} has a runner of its own, which is timed, not asked")
    artifact = tmp_path / "artifact"
    run("export", str(folder), "--runtime", name, "--output", str(artifact))
    try:
        assert "Paris" in answer(artifact)
    finally:
        shutil.rmtree(artifact)  # half a gigabyte
