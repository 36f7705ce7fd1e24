"""archloop export: a whole artifact, from a spec or a checkpoint, and the engine's own command."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from archloop.checkpoints.saving import save
from archloop.cli import app
from archloop.generation.model import load_model, without_weights
from archloop.runtimes.artifact import read_manifest
from archloop.runtimes.exporting import build_random
from archloop.runtimes.parity import session_rows
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.text.special_tokens import SpecialTokens

SPEC = StackSpec(
    d_model=64,
    vocab_size=128,
    blocks=(
        BlockSpec(
            mixers=(MixerSpec(name="short_conv"),), channel_mixer=ChannelMixerSpec(name="swiglu")
        ),
        BlockSpec(
            mixers=(MixerSpec(name="gqa", config={"head_dim": 32}),),
            channel_mixer=ChannelMixerSpec(name="swiglu"),
        ),
    ),
)


def export(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def spec_file(tmp_path: Path) -> str:
    (tmp_path / "spec.json").write_text(SPEC.to_json())
    return str(tmp_path / "spec.json")


def test_a_spec_gets_random_weights_and_says_so(spec_file: str, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    status, told, _ = export(spec_file, "--runtime", "torch_eager", "-o", str(out), "--json")
    assert status == 0
    facts = json.loads(told)
    assert (facts["weights"], facts["runtime"], facts["quant"]) == ("random", "torch_eager", "fp32")
    assert facts["parity_error"] <= facts["parity_bound"]
    assert read_manifest(out).spec == SPEC
    status, _, problem = export(spec_file, "--runtime", "torch_eager", "-o", str(out))
    assert (status, "exists already" in problem) == (2, True)


def test_a_checkpoint_keeps_its_weights_and_tokenizer(tmp_path: Path) -> None:
    decoder = build_random(SPEC, seed=3)
    save(decoder, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").write_text("{}")
    out = tmp_path / "artifact"
    arguments = [str(tmp_path / "checkpoint"), "--runtime", "torch_eager", "-o", str(out)]
    status, told, _ = export(*arguments, "--json")
    assert status == 0
    assert json.loads(told)["weights"] == "checkpoint"
    assert (out / "tokenizer.json").read_text() == "{}"
    session = TorchEager().load(out, read_manifest(out), threads=1, max_context=8)
    (logits_V,) = session_rows(session, [[1, 2, 3]], [])
    expected = decoder.prefill(torch.tensor([[1, 2, 3]]), decoder.init_state(1, 8))[0]
    torch.testing.assert_close(torch.tensor(logits_V), expected)


@pytest.mark.parametrize("asked", ["--runtime torch_eager", "--format transformers"])
def test_templates_and_special_tokens_go_along(asked: str, tmp_path: Path) -> None:
    """Also those tokens that only the configuration names, which an artifact does not have."""
    source, out = tmp_path / "checkpoint", tmp_path / "out"
    save(build_random(SPEC, seed=3), source, tokens=SpecialTokens(bos=1, eos=(3, 5)))
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    (source / "chat_template.jinja").write_text("plain")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    status, told, problem = export(str(source), *asked.split(), "-o", str(out), "--json")
    assert status == 0, problem
    assert "additional_chat_templates/tool_use.jinja" in json.loads(told)["tokenizer"]
    found = without_weights(SPEC, out)
    assert found.stop_ids == load_model(source).stop_ids == (3, 5)
    assert found.chat_template is not None
    assert found.chat_template.render([], name="tool_use") == "with tools"
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.5


def test_no_file_from_outside_the_checkpoint_goes_along(tmp_path: Path) -> None:
    source, out = tmp_path / "checkpoint", tmp_path / "out"
    save(build_random(SPEC, seed=3), source)
    (tmp_path / "secret").write_text("{}")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    status, _, problem = export(str(source), "--runtime", "torch_eager", "-o", str(out))
    assert status == 2
    assert "outside the checkpoint's folder" in problem
    # Refused before anything is written, so that the same command works once it is mended.
    assert not out.exists()


def test_a_tokenizer_that_an_engines_file_cannot_hold_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(build_random(SPEC, seed=3), tmp_path / "checkpoint")
    monkeypatch.setattr(TorchEager, "add_tokenizer", lambda *_: "it is of wood")
    out = tmp_path / "artifact"
    arguments = [str(tmp_path / "checkpoint"), "--runtime", "torch_eager", "-o", str(out)]
    assert export(*arguments)[0] == 0
    assert "no tokenizer: it is of wood" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runtime", "torch_eagre"], "did you mean 'torch_eager'"),
        (["--runtime", "torch_eager", "--quant", "fp23"], "did you mean 'fp32'"),
    ],
)
def test_wrong_words_are_one_line(
    options: list[str], words: str, spec_file: str, tmp_path: Path
) -> None:
    status, _, problem = export(spec_file, *options, "-o", str(tmp_path / "out"))
    assert (status, problem.count("\n")) == (2, 1)
    assert words in problem
    assert not (tmp_path / "out").exists()


@pytest.mark.ci
def test_openvinos_own_tool_runs_the_artifact(spec_file: str, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    status, told, _ = export(spec_file, "--runtime", "openvino", "-o", str(out), "--json")
    assert status == 0
    program, *arguments = shlex.split(json.loads(told)["run_with"])
    assert program == "benchmark_app"
    tool = [sys.executable, "-c", "from openvino.tools.benchmark.main import main; main()"]
    done = subprocess.run(
        [*tool, *arguments, "-niter", "5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-500:]
    assert "Median" in done.stdout
