"""archloop compare A B as they are; progress and limit of a measurement; STUDY:7 as MODEL."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from archloop.cli import app, comparing, measuring, models
from archloop.cli import profile as profile_command
from archloop.errors import UserError
from archloop.profiling.record import Interval
from archloop.report import designs as picture
from archloop.search.study import Study
from archloop.stack.footprint import footprint
from archloop.workers.deaths import WorkerError
from report import studies
from search.stand_in import StandIn, no_time, recipe


def spec_file(folder: Path, pattern: str) -> str:
    file = folder / f"{pattern}.json"
    file.write_text(studies.spec(pattern).to_json())
    return str(file)


@pytest.mark.ci
def test_models_are_measured_in_turns_and_said_to_differ_or_tie(tmp_path: Path) -> None:
    files = [spec_file(tmp_path, pattern) for pattern in ("AA", "CC")]
    call = ["compare", *files, "--contexts", "16", "--processes", "2", "--threads", "1", "--json"]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    (found,) = json.loads(shown.stdout)
    assert (found["name"], found["beside"]) == (files[1], files[0])
    ratios = found["measured"]["ratios"]["16"]
    for name, told in found["verdicts"]["16"].items():
        low, high = ratios[name]["low"], ratios[name]["high"]
        assert told == ("tied" if low <= 1 <= high else "differs")
    assert set(found["verdicts"]["16"]) >= {"ttft_ms", "decode_p50_ms", "peak_memory_bytes"}
    assert "left" in shown.stderr or "%" in shown.stderr


@pytest.mark.parametrize(
    "low, high, told", [(0.9, 1.1, "tied"), (1.01, 1.2, "differs"), (0.8, 0.99, "differs")]
)
def test_a_figure_differs_where_its_interval_leaves_one_out(
    low: float, high: float, told: str
) -> None:
    assert comparing.verdict(Interval(value=(low + high) / 2, low=low, high=high)) == told


def test_the_first_models_curve_is_what_its_ratios_say(tmp_path: Path) -> None:
    spec = studies.spec("CC")
    told = studies.profile(2.0)
    ratio = Interval(value=0.5, low=0.4, high=0.6)
    contexts = [str(at.context) for at in told.figures]
    told = told.model_copy(update={"ratios": {at: {"decode_p50_ms": ratio} for at in contexts}})
    shown = footprint(spec, [at.context for at in told.figures])
    found = comparing.Comparison("a", [comparing.Compared("b", shown, told)], {})
    curves = found.curves()
    assert list(curves) == ["decode_p50_ms"]
    for at in told.figures:
        assert curves["decode_p50_ms"]["b"][at.context] == at.decode_p50_ms
        of_first = curves["decode_p50_ms"]["a"][at.context]
        assert of_first.low == of_first.value == of_first.high == 2 * at.decode_p50_ms.value


def test_a_figure_that_the_first_measurement_lacks_is_told_of_another(tmp_path: Path) -> None:
    told, point = studies.profile(2.0), Interval.point(0.5)
    contexts = [at.context for at in told.figures]
    shown = footprint(studies.spec("CC"), contexts)
    given = [{"decode_p50_ms": point}, {"decode_p50_ms": point, "ttft_ms": point}]
    others = [
        comparing.Compared(
            name, shown, told.model_copy(update={"ratios": {str(at): ratios for at in contexts}})
        )
        for name, ratios in zip("bc", given, strict=True)
    ]
    curves = comparing.Comparison("a", others, {}).curves()
    assert list(curves["decode_p50_ms"]) == ["a", "b", "c"]
    assert list(curves["ttft_ms"]) == ["a", "c"]
    for at in told.figures:
        assert curves["ttft_ms"]["a"][at.context].value == 2 * at.ttft_ms.value


def test_what_is_measured_is_drawn_below_the_estimates(tmp_path: Path) -> None:
    spec = studies.spec("CC")
    told = studies.profile(2.0)
    contexts = [at.context for at in told.figures]
    told = told.model_copy(
        update={
            "ratios": {
                str(at): {name: Interval.point(1.0) for name in picture.MEASURED} for at in contexts
            }
        }
    )
    drawn = {name: footprint(spec, contexts) for name in ("a", "b", "left out")}
    found = comparing.Comparison("a", [comparing.Compared("b", drawn["b"], told)], {})
    sizes = []
    for name, measured in (("estimates.svg", None), ("both.svg", found.curves())):
        file = tmp_path / name
        picture.write(drawn, "designs", file, measured)
        sizes.append(file.read_text().count('id="axes_'))
    assert sizes == [3, 6]


@pytest.mark.parametrize("measured", [0, 1])
def test_what_was_measured_before_a_stop_is_told(
    measured: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, left = studies.profile(2.0), list(range(measured))
    folders = []

    def stopped_after(*_: object, directory: Path, artifacts: Path, **__: object) -> object:
        folders.append((directory, artifacts))
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return told.model_copy(update={"ratios": {"256": {}, "1024": {}}})

    monkeypatch.setattr("archloop.profiling.profile", stopped_after)
    files = [spec_file(tmp_path, pattern) for pattern in ("AA", "CC", "AC")]
    shown = CliRunner().invoke(app, ["compare", *files, "--contexts", "256,1024", "--json"])
    assert shown.exit_code == 130
    found = json.loads(shown.stdout) if measured else []
    assert [each["name"] for each in found] == files[1 : 1 + measured]
    # What the first model exports is there for all; each has a folder of its own beside it.
    assert len({directory for directory, _ in folders}) == len(folders)
    assert len({artifacts for _, artifacts in folders}) == 1


def test_a_model_that_cannot_be_measured_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_first(*_: object, directory: Path, **__: object) -> object:
        if directory.name == "0":
            raise WorkerError("crashed", "the process died")
        return studies.profile(2.0).model_copy(update={"ratios": {"256": {}, "1024": {}}})

    monkeypatch.setattr("archloop.profiling.profile", fails_first)
    files = [spec_file(tmp_path, pattern) for pattern in ("AA", "CC", "AC")]
    shown = CliRunner().invoke(app, ["compare", *files, "--contexts", "256,1024", "--json"])
    assert shown.exit_code == 0, shown.output
    assert [each["name"] for each in json.loads(shown.stdout)] == files[2:]
    assert f"{files[1]} is not measured: " in shown.stderr
    assert "the process died" in shown.stderr
    alone = CliRunner().invoke(app, ["compare", *files[:2], "--contexts", "256,1024"])
    assert alone.exit_code != 0


def test_options_of_one_half_are_refused_by_the_other(tmp_path: Path) -> None:
    file = spec_file(tmp_path, "CC")
    for options, what in [
        (("--plot", "x.svg"), "--plot, --specs, --profile and --train belong to"),
        (("--processes", "1"), "--processes 1: must be from 2"),
        (("--runtime", "torch_egar"), "did you mean 'torch_eager'"),
    ]:
        shown = CliRunner().invoke(app, ["compare", file, *options])
        assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1), shown.stderr
        assert what in shown.stderr


def test_time_left_is_told_in_lines_where_there_is_no_terminal() -> None:
    now = 0.0
    written = io.StringIO()
    console = Console(file=written, force_terminal=False, width=200)
    with measuring.watched(console, lambda: now) as say:
        for step in range(11):
            now = 4.0 * step
            say(step / 10, f"process {step}")
    lines = written.getvalue().splitlines()
    assert lines[0].endswith("waiting until the device is free")
    # At 12 s of 40, the first after ten seconds.
    assert lines[1] == " 30% process 3, about 28 s left"
    assert len(lines) == 4


def test_a_wait_for_the_device_is_no_time_of_the_measurement() -> None:
    now = 0.0
    written = io.StringIO()
    console = Console(file=written, force_terminal=False, width=200)
    with measuring.watched(console, lambda: now) as say:
        now = 1800.0
        say(0.0, "process 1")
        now = 1860.0
        say(0.2, "process 2")
    # A minute for a fifth, and half an hour of waiting before.
    assert written.getvalue().splitlines()[-1] == " 20% process 2, about 4 min left"


def test_a_step_that_takes_long_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "EVERY_S", 0.5)
    written = io.StringIO()
    console = Console(file=written, force_terminal=False, width=200)
    with measuring.watched(console) as say:
        say(0.25, "process 1, context 32768")
        time.sleep(1.4)
    assert written.getvalue().count("25% process 1, context 32768") >= 1


def test_a_measurement_that_takes_too_long_is_ended_as_soon_as_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(profile_command.time, "monotonic", lambda: now)
    heard = []
    say = profile_command._limited(lambda share, _: heard.append(share), 60.0, 0.0)
    now = 5.0
    say(0.0, "exporting the candidate")
    now = 20.0
    say(0.0, "process 1, context 64")
    now = 20.5
    say(0.005, "process 1, context 64")
    # The first process took 20 s to start; the prefills of its first context are a fiftieth.
    now = 21.6
    with pytest.raises(UserError, match=r"--time-limit 60: this would take about 100 s"):
        say(0.02, "process 1, context 64")
    assert heard == [0.0, 0.0, 0.005, 0.02]
    profile_command._limited(lambda *_: None, None, 0.0)(0.5, "no limit")
    now = 61.0
    with pytest.raises(UserError, match="--time-limit 60"):
        say(0.01, "starting")


def test_a_trial_is_named_in_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Study(recipe(num_trials=2), tmp_path, evaluator=StandIn(), clock=no_time).run()
    folder = tmp_path / "test"
    assert models.find(f"{folder}:1").spec == record.trials[1].spec
    assert models.find(f"{folder}:reference").label == "test-reference"
    file = folder / "trials" / "000001" / "spec.json"
    assert models.find(str(file)).spec == record.trials[1].spec
    # A copy that somebody made has no number.
    (folder / "trials" / "000001 before").mkdir()
    with pytest.raises(UserError, match="has no trial 9; it has 0 to 1, and reference"):
        models.find(f"{folder}:9")
    monkeypatch.chdir(folder)
    assert models.find(".", "1").label == "test-trial-1"
