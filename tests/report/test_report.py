"""What a report says: right numbers, everything on one page, nothing fetched from outside."""

import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from archloop.errors import UserError
from archloop.report import html, layout, static, summary
from archloop.report.outcome import print_outcome
from archloop.store.record import FamilyRate
from report import studies


def test_summary_is_json_with_known_front_and_hypervolume() -> None:
    facts = json.loads(json.dumps(summary.summarize(studies.study()), allow_nan=False))
    assert facts["front"] == [1, 5, 0]
    assert facts["front_by_rung"] == {"0": [1, 5, 0], "1": [0]}
    assert [r["number"] for r in facts["rejected"]] == [2]
    assert [f["number"] for f in facts["failed"]] == [4]
    # One point: quality 0.55 x (1.5 - 0.95) x (1.5 - 0.9).
    assert facts["hypervolume"]["curve"][0] == [0, pytest.approx(0.55 * 0.55 * 0.6)]
    values = [value for _, value in facts["hypervolume"]["curve"]]
    assert values == sorted(values)
    assert facts["hypervolume"]["value"] == values[-1]


def test_dominated_trial_adds_no_hypervolume() -> None:
    curve = dict(summary.hypervolume_curve(studies.study()))
    assert curve[3] == curve[2] == curve[1]
    assert curve[5] > curve[3]


def test_page_is_self_contained_and_complete() -> None:
    page = html.render(studies.study())
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', outside)
    for text in ("in_context_recall", "decode_p50_ms at 1024 on host", "load average", "0.40%"):
        assert text in page
    assert "out of memory while training &lt;killed&gt;" in page
    assert page.count('<svg class="stack"') == 5  # four trained, one rejected


def test_study_without_trials_still_renders() -> None:
    empty = studies.study().model_copy(
        update={"trials": (), "reference": None, "reference_point": None, "overhead": None}
    )
    assert "None was trained yet" in html.render(empty)


def test_diverged_trial_is_flagged_and_on_no_front(tmp_path: Path) -> None:
    study = studies.study()
    rung = studies.rung(0, 0.0, 0.1, 0.1).model_copy(update={"diverged": True})
    trials = (*study.trials, studies.trial(6, "CCCC", rungs=(rung,)))
    study = study.model_copy(update={"trials": trials})
    facts = summary.summarize(study)
    assert 6 not in facts["front"]
    assert facts["trials"][6]["diverged"]
    assert '<span class="bad">diverged</span>' in html.render(study)
    static.write(study, tmp_path / "front.svg")
    # Once in each panel; the SVG draws letters as shapes and keeps the text as a comment.
    assert (tmp_path / "front.svg").read_text().count("<!-- diverged -->") == 2


def test_tuned_rates_are_shown_and_an_optimum_at_the_edge_is_flagged() -> None:
    assert "Learning rates were not tuned" in html.render(studies.study())
    rate = FamilyRate(value=0.01, losses={"0.01": 2.5, "0.1": math.inf}, at_edge=True)
    study = studies.study().model_copy(update={"learning_rates": {"gqa": rate}})
    facts = json.loads(json.dumps(summary.summarize(study), allow_nan=False))
    assert facts["learning_rates"]["gqa"]["losses"] == {"0.01": 2.5, "0.1": None}
    page = html.render(study)
    assert "at the edge of the grid" in page
    assert "0.01: 2.5000, 0.1: -" in page


def test_page_shows_memory_with_its_interval_and_why_a_study_ended() -> None:
    page = html.render(studies.study().model_copy(update={"ended": "the space is exhausted"}))
    assert "Ended early: the space is exhausted." in page
    assert "286.1 [277.5, 297.5]" in page


def test_error_after_rung_0_is_shown() -> None:
    study = studies.study()
    hurt = study.trials[1].model_copy(update={"error": "rung 1: exit status <9>"})
    page = html.render(study.model_copy(update={"trials": (hurt,)}))
    assert "rung 1: exit status &lt;9&gt;" in page


def test_write_replaces_the_old_page_whole(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")
    html.write(studies.study(), page)
    assert page.read_text().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_terminal_outcome_names_front_rejections_and_report(tmp_path: Path) -> None:
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(studies.study(), Path("runs/example/report.html"), console)
    text = console.export_text()
    assert "rejected 2 A A A A: decode_p50_ms at 1024 on host: 1.5 > 1.3 x reference" in text
    assert "failed 4" in text
    assert "report: runs/example/report.html" in text


def test_what_left_the_aggregate_and_what_no_runtime_runs_is_told(tmp_path: Path) -> None:
    refused = studies.trial(
        0, "CC", state="unsupported", error="host: tiny: a width of 7", profiles={}
    )
    changes = {"trials": (refused,), "admitted": ("text",), "ended": "all was tried"}
    study = studies.study().model_copy(update=changes)
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(study, Path("report.html"), console)
    text = console.export_text()
    assert "unsupported 0 C C: host: tiny: a width of 7" in text
    assert "memorization does not count: 1.2 standard errors above chance" in text
    assert "quality is text alone" in text
    assert "ended early: all was tried" in text
    assert "0 broke a device budget before any training; 1 cannot run on a required target" in text
    assert "cannot run on a required target: host: tiny: a width of 7" in html.render(study)
    assert summary.summarize(study)["unsupported"][0]["error"] == "host: tiny: a width of 7"


def test_drawing_describes_runs_and_sharing() -> None:
    assert layout.describe(studies.spec("CCAC")) == "2 x short_conv, gqa, short_conv"
    spec = studies.spec("CASC")
    drawing = layout.svg(spec)
    assert drawing.count("<g>") == 4
    assert "arc state" in drawing
    assert "state from 1" in drawing


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.2 s"), (185, "3 min 05 s"), (3_720, "1 h 02 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert html.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(354_483_968, "354.5M"), (23.8e9, "23.8B"), (12, "12")]
)
def test_count(value: float, text: str) -> None:
    assert html.count(value) == text


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_still_picture_repeats_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        static.write(studies.study(), path)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 5_000


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    empty = studies.study().model_copy(update={"trials": ()})
    with pytest.raises(ValueError, match="no trained trial"):
        static.write(empty, tmp_path / "front.svg")


def test_a_picture_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"front.txt: draws .svg, .png, .pdf"):
        static.write(studies.study(), tmp_path / "front.txt")
