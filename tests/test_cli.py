"""The command line: JSON alone on stdout, one clear line and the right exit status on bad input."""

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import archloop
from archloop import registry
from archloop.cli import app
from archloop.files import write_atomic
from archloop.search.study import Study
from archloop.stack import presets
from search.stand_in import StandIn, recipe, settings

COMMANDS = {"search", "profile", "report", "eval", "generate", "presets", "plugins"} | {
    "compare",
    "plan",
    "doctor",
    "export",
    "extend",
    "train",
    "quantised",
    "rerank",
    "attribute",
    "blocks",
    "init",
}

WITHOUT_PLUGINS = {"blocks", "plan", "search", "extend", "report", "rerank", "init"} | {
    "attribute",
    "quantised",
}
"""These find a recipe's or a study's own, or need none."""


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_commands_are_these_and_no_others() -> None:
    assert {c.callback.__name__ for c in app.registered_commands if c.callback} == COMMANDS


@pytest.mark.parametrize("module", ["archloop", "archloop.cli"])
def test_the_package_is_the_command_too(module: str) -> None:
    call = [sys.executable, "-m", "archloop", "--version"]
    if module == "archloop.cli":
        call = [sys.executable, "-c", "from archloop.cli import main; main()", "--version"]
    assert subprocess.check_output(call, text=True) == f"archloop {archloop.__version__}\n"


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_verb(option: str) -> None:
    status, out, _ = run(option)
    assert status == 0
    assert all(f" {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_verb_is_a_file(command: str) -> None:
    assert importlib.import_module(f"archloop.cli.{command}")
    status, out, _ = run(command, "-h")
    assert status == 0
    assert ("--plugins" in out) == (command not in WITHOUT_PLUGINS)


def test_plugins_of_a_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_folders", {})
    (tmp_path / "mixers").mkdir()
    (tmp_path / "mixers" / "misspelt.py").write_text("from archloop.blocks import Wrong\n")
    status, out, _ = run("plugins", "mixers", "--plugins", str(tmp_path), "--json")
    told = {each["name"]: each for each in json.loads(out)["mixers"]}
    assert status == 0
    assert "line 1 cannot be imported" in told["misspelt"]["error"]
    assert told["short_conv"]["genes"] == {"kernel": [3, 5, 7]}
    assert told["short_conv"]["settings"] == {"kernel": 3, "bias": False}
    assert told["short_conv"]["description"].startswith("Gated short convolution")
    spec = json.loads(presets.load("lfm2-350m").to_json())
    spec["blocks"][0]["mixers"] = [{"name": "misspelt"}]
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    status, _, err = run("profile", str(tmp_path / "spec.json"), "--plugins", str(tmp_path))
    assert status == 2
    assert f"{tmp_path / 'mixers' / 'misspelt.py'}, line 1 cannot be imported" in err
    assert err.count("\n") == 1
    status, _, err = run("plugins", "--plugins", str(tmp_path / "nowhere"))
    assert (status, "does not exist" in err) == (2, True)


def test_a_folder_is_scored_before_a_preset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = min(presets.names())
    Path(name).mkdir()
    # A model of random weights would be built here.
    monkeypatch.setattr("archloop.cli.models.load_spec", lambda _: pytest.fail("the preset"))
    status, _, err = run("eval", name, "--tasks", "addition", "--limit", "2")
    assert (status, "config.json" in err) == (2, True)


def test_presets_as_json() -> None:
    status, out, err = run("presets", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert (status, err) == (0, "")
    assert set(rows) == set(presets.names())
    row = rows["lfm2-350m"]
    assert row["num_params"] == row["num_active_params"] == 354_483_968
    assert row["layout"].count("gqa") == 6
    assert row["state_bytes"]["32768"] - row["state_bytes"]["4096"] == 12_288 * (32_768 - 4_096)


def test_presets_as_table_names_every_preset() -> None:
    status, out, _ = run("presets")
    assert status == 0
    assert all(name in out for name in presets.names())


def test_plugins_as_json() -> None:
    """Each with what it is and, where it has any, its settings."""
    status, out, _ = run("plugins", "--json")
    assert status == 0
    told = json.loads(out)
    assert told.keys() == registry.KINDS.keys()
    for kind, listed in told.items():
        assert [each["name"] for each in listed] == registry.names(kind)
        for each in listed:
            assert each["description"], f"{kind} {each['name']}"
            assert each["error"] is None


def test_a_studys_own_plugins_are_found_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_folders", {})
    (tmp_path / "mine" / "strategies").mkdir(parents=True)
    (tmp_path / "mine" / "strategies" / "own.py").write_text(
        '"""Mine."""\nfrom archloop.search.strategies.random import RandomSearch\n\n\n'
        'class Own(RandomSearch):\n    """Random search of my own."""\n'
    )
    changes = {"plugins": "mine", "strategy": {"name": "own"}, "num_trials": 2}
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings(**changes)))
    Study(tmp_path / "recipe.yaml", tmp_path / "runs", evaluator=StandIn()).run()
    monkeypatch.setattr(registry, "_folders", {})
    status, out, _ = run(
        "plugins", "strategies", "--plugins", str(tmp_path / "runs" / "test"), "--json"
    )
    told = {each["name"]: each["description"] for each in json.loads(out)["strategies"]}
    assert (status, told.get("own")) == (0, "Random search of my own.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plugins", "mixer"], "did you mean 'mixers'"),
        (["profile", "lfm2-350"], "did you mean 'lfm2-350m'"),
        (["profile", "lfm2-350m", "--contexts", "1k"], "1k"),
        (["profile", "lfm2-350m", "--device", "hosts"], "did you mean 'host'"),
        (["profile", "lfm2-350m", "--runtime", "torch"], "torch_eager"),
        (["profile", "lfm2-350m", "--processes", "1"], "--processes 1: must be greater than"),
        (["profile", "lfm2-350m", "--contexts", "64,0"], "--contexts 0: must be greater than"),
        (["profile", "absent.json"], "absent.json does not exist"),
        (["search", "absent.yaml"], "absent.yaml"),
        (["report", "absent"], "absent"),
        (["report", __file__], "no study here"),
        (["eval", "lfm2-350m", "--suite", "mmlu"], "unknown suite 'mmlu'"),
        (["eval", "lfm2-350m", "--suite", "mad", "--tasks", "recall"], "not a task of MAD"),
        (["generate", "./absent", "--prompt", "x"], "absent"),
        (["generate", "./absent", "--prompt", "x", "--device", "tpu"], "this machine has cpu:0"),
        (["generate", "./absent", "--prompt", "x", "--max-new-tokens", "0"], "'--max-new-tokens'"),
        (["generate", "./absent", "--prompt", "\udcff"], "not UTF-8"),
        (["eval", "lfm2-350m", "--suite", "mad", "--tasks", ""], "not a task of MAD"),
        (
            ["eval", "lfm2-350m", "--suite", "mad", "--device", "cuda:99"],
            "device 'cuda:99' is not here",
        ),
        (["search"], "Missing argument 'recipe'; see "),
        (["search", "a\0b.yaml"], "'recipe'"),
        (["profile", "lfm2-350m", "--threads", "x"], "'--threads'"),
        (["profile", "lfm2-350m", "--nope"], "--nope; see "),
        (["serach"], "No such command 'serach'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1, err


def test_a_bug_is_no_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: str) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr("archloop.cli.models.load_spec", wrong)
    result = CliRunner().invoke(app, ["profile", "lfm2-350m"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


def test_an_interrupted_command_says_whether_it_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("archloop.search.recipe.recipe.load", stop)
    monkeypatch.setattr("archloop.cli.models.load_spec", stop)
    assert run("search", "any.yaml")[::2] == (
        130,
        "stopped; the same command goes on from here\n",
    )
    assert run("profile", "lfm2-350m")[::2] == (130, "stopped\n")


def test_sigterm_ends_a_search_as_cleanly_as_an_interrupt(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings()))
    call = "from archloop.cli import main; main()"
    program = [sys.executable, "-c", call, "search", str(tmp_path / "a.yaml"), "--runs"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        [*program, str(tmp_path)], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        assert "preparing" in process.stderr.readline()
        process.terminate()
        *_, last = process.stderr.read().splitlines()
        assert last == "stopped; the same command goes on from here"
    assert process.returncode == 128 + signal.SIGTERM


def test_a_search_that_meets_no_budget_still_shows_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = {"metric": "ttft_ms", "limit": 0.01, "relative": True}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings(num_trials=2, budgets=[budget])))
    monkeypatch.setattr(Study, "_hardware", lambda _: StandIn())
    status, out, err = run("search", str(tmp_path / "a.yaml"), "--runs", str(tmp_path))
    assert status == 1
    assert "archloop: no feasible trial; nearest was trial" in err.splitlines()[-1]
    assert "rejected 1 " in out
    status, out, _ = run("search", str(tmp_path / "a.yaml"), "--runs", str(tmp_path), "--json")
    assert (status, len(json.loads(out)["rejected"])) == (1, 2)
    assert (tmp_path / "test" / "report.html").is_file()


def test_report_of_a_folder_that_cannot_be_written_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(recipe(num_trials=2), tmp_path, evaluator=StandIn())
    study.run()

    def refuse(path: Path, content: bytes) -> None:
        if path.parent == study.folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path.parent / ".hidden.1f"))
        write_atomic(path, content)

    monkeypatch.setattr("archloop.report.html.write_atomic", refuse)
    status, out, err = run("report", str(study.folder))
    assert status == 0
    assert "Hypervolume" in out
    assert "report.html is not written: Read-only file system; see" in err
    assert "hidden" not in err
    elsewhere = tmp_path / "page.html"
    status, out, err = run("report", str(study.folder), "--output", str(elsewhere))
    assert (status, err) == (0, "")
    assert elsewhere.is_file()


def test_memory_or_time_that_does_not_do_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, said in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "20.00 GiB"),
        (MemoryError(), "archloop: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "you tried"),
        # It has no words, and says nothing of memory.
        (TimeoutError(), "archloop: TimeoutError"),
    ):

        def refuse(_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("archloop.evals.suites.parted", refuse)
        status, out, err = run("eval", "lfm2-350m")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert said in err


def test_a_broken_spec_file_names_the_field(tmp_path: Path) -> None:
    spec = json.loads(presets.load("lfm2-350m").to_json())
    spec["blocks"][3]["mixers"][0]["state_from"] = 9
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    status, _, err = run("profile", str(file))
    assert status == 2
    assert "state_from=9" in err
    assert err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "invalid JSON"),
        ("[]", "must be a mapping of keys"),
        ('{"mixers": [{"name": "gqqa"}]}', "did you mean 'gqa'"),
        ('{"mixers": [{"name": "gqa", "config": {"head_dim": 48}}]}', "head_dim=48"),
        ('{"channel_mixer": {"name": "moe", "config": {"top_k": 99}}}', "top_k=99"),
        ('{"mixers": [{"name": "gqa", "config": {"wide": 1}}]}', "gqa has no setting 'wide'"),
    ],
)
def test_a_spec_that_cannot_be_built_is_named_before_anything_runs(
    content: str, message: str, tmp_path: Path
) -> None:
    whole = content if content in "{[]" else f'{{"d_model":64,"vocab_size":9,"blocks":[{content}]}}'
    (tmp_path / "spec.json").write_text(whole)
    status, out, err = run("profile", str(tmp_path / "spec.json"), "--contexts", "16")
    assert (status, out) == (2, "")
    assert err.startswith(f"archloop: {tmp_path / 'spec.json'}: ")
    assert message in err
    assert err.count("\n") == 1, err


def test_a_terminal_of_few_characters_gets_others_in_their_place() -> None:
    call = "from archloop.cli import command; command.app = lambda: print(chr(177)); command.main()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert subprocess.check_output([sys.executable, "-c", call], env=environment) == b"?\n"


def test_a_closed_pipe_ends_quietly() -> None:
    call = "from archloop.cli import main; main()"
    program = [sys.executable, "-c", call, "presets", "--json"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
