"""`archloop generate`: a checkpoint's reply on stdout, and nothing else there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from archloop import checkpoints, generation
from archloop.cli import app
from archloop.generation.sampling import Sampling
from checkpoints import folders

Generate = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    checkpoints.save(folders.decoder(folders.spec(vocab_size=261)), path)
    folders.tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": folders.TEMPLATE}))
    return path


@pytest.fixture
def generate(folder: Path) -> Generate:
    def run(*options: str) -> Result:
        arguments = ["generate", str(folder), "--prompt", "Hi", "--max-new-tokens", "24", *options]
        return CliRunner().invoke(app, arguments)

    return run


def test_stdout_is_the_reply(folder: Path, generate: Generate) -> None:
    model = generation.load_model(folder)
    hot = Sampling(temperature=2.0, top_k=50, seed=5)
    chat = [{"role": "user", "content": "Hi"}]
    plain = "".join(generation.stream(model, "Hi", max_new_tokens=24))
    answer = "".join(generation.stream(model, chat, hot, max_new_tokens=24))
    assert generate().stdout == plain + "\n"
    options = ["--chat", "--temperature", "2", "--top-k", "50", "--seed", "5"]
    assert generate(*options).stdout == answer + "\n"
    stop = plain[6:8]
    assert generate("--stop", stop).stdout == plain[: plain.index(stop)] + "\n"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--top-p", "0.9"], "--top-p changes nothing at temperature 0; give --temperature"),
        (["--temperature", "0", "--top-k", "5"], "--top-k changes nothing"),
        (["--temperature", "inf"], "temperature 0, or from 1e-6 up"),
        (["--stop", ""], "stop string must not be empty"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
    ],
)
def test_options_that_cannot_work(options: list[str], message: str, generate: Generate) -> None:
    result = generate(*options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_interrupt_keeps_what_was_said(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[str]:
        yield "Hel"
        raise KeyboardInterrupt

    monkeypatch.setattr("archloop.generation.model.stream", interrupted)
    result = generate()
    assert (result.exit_code, result.stdout, result.stderr) == (130, "Hel", "stopped\n")
