"""What a report says: right numbers, everything on one page, nothing fetched from outside."""

import base64
import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from archloop.errors import UserError
from archloop.findings.verdict import Row, unranked, verdict
from archloop.ranking import front
from archloop.ranking.record import Readings
from archloop.report import html, layout, static, summary, trials
from archloop.report.outcome import print_outcome
from archloop.report.renewed import Renewed
from archloop.report.telling import telling
from archloop.report.top import top
from archloop.store.record import FamilyRate, StudyRecord, TrialRecord
from report import studies


def whole(study: StudyRecord) -> str:
    """The page with what it has compressed in its place, the plots' library left out."""
    page = re.sub(r'<script type="text/plain" id="library">.*?</script>', "", html.render(study))
    packed = re.search(r'<script type="text/plain" id="pages">(.*?)</script>', page)
    assert packed is not None
    return page[: packed.start()] + gzip.decompress(base64.b64decode(packed[1])).decode()


def test_summary_is_json_with_known_places() -> None:
    facts = json.loads(json.dumps(summary.summarize(studies.study()), allow_nan=False))
    places = {place["number"]: place for place in facts["places"]}
    # 1 is by far the fastest and smallest, 0 by far the best in quality; 3 is 1 but worse.
    assert facts["front"] == [1, 5, 0]
    assert places[3]["status"] == "dominated"
    assert places[3]["dominated_by"] == 1
    assert places[0]["better_in"] == ["quality", "latency", "memory"]
    assert places[-1]["status"] == "dominated"
    assert places[-1]["estimates"]["latency"]["se"] == 0.0
    low, high = (places[1]["estimates"]["latency"][end] for end in ("low", "high"))
    assert low < 0.7 < high
    assert [r["number"] for r in facts["rejected"]] == [2]
    assert [f["number"] for f in facts["failed"]] == [4]
    # The volume that 0, 1 and 5 dominate together, to within its interval.
    points = [(-0.55, 0.95, 0.9), (-0.40, 0.70, 0.6), (-0.52, 0.85, 0.65)]
    volume = facts["hypervolume"]
    assert volume["low"] < front.hypervolume(points, (0, 1.5, 1.5)) < volume["high"]
    assert [point["trial"] for point in volume["growth"]] == [0, 1, 3, 5]


def test_values_come_from_the_highest_rung_that_three_reached() -> None:
    study = studies.study()
    assert summary.summarize(study)["rung"] == 0
    longer = {
        0: studies.objectives(0.61, 0.95, 0.9),
        1: studies.objectives(0.47, 0.70, 0.6),
        3: studies.objectives(0.35, 0.80, 0.7),
    }
    trials = [
        trial.model_copy(update={"by_rung": (trial.by_rung[0], longer[trial.number])})
        if trial.number in longer
        else trial
        for trial in study.trials
    ]
    facts = summary.summarize(study.model_copy(update={"trials": tuple(trials)}))
    assert facts["rung"] == 1
    quality = {p["number"]: p["estimates"]["quality"] for p in facts["places"]}
    assert quality[0]["mean"] == pytest.approx(0.61)
    assert quality[5]["mean"] == pytest.approx(0.52 + 0.06)
    assert quality[5]["se"] > quality[0]["se"]


def noisy() -> StudyRecord:
    """The example with trainings so noisy that nothing is known of quality."""
    noise = ({"quality": Readings(mean=0.5, sd=0.15, n=9)},)
    return studies.study().model_copy(update={"noise": noise})


def test_a_study_that_cannot_rank_quality_says_so_and_what_would(tmp_path: Path) -> None:
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(noisy(), Path("report.html"), console)
    text = console.export_text()
    assert "this study cannot rank quality: its reliability is 0." in text
    assert re.search(r"in about \d+ more minutes?: `archloop extend` with `--seeds \d+`", text)
    assert "on the front" not in text
    # What is certain comes first: figures of the device.
    assert text.index("TTFT ms") < text.index("quality")
    assert "faster, smaller" in text
    assert "cannot rank quality" in html.render(noisy())
    static.write(noisy(), tmp_path / "front.svg")
    assert "not ranked" in (tmp_path / "front.svg").read_text()


def test_without_a_ranking_nobody_is_on_a_front_and_a_reference_proves_nothing() -> None:
    facts = summary.summarize(noisy())
    assert "quality" in facts["unranked"]
    assert facts["front"] == []
    assert {place["status"] for place in facts["places"]} == {"tied"}
    # None of these is as good in quality as the reference; they would have to be replicated.
    values = {1: (0.40, 0.7, 0.6), 3: (0.30, 0.8, 0.7), 6: (0.20, 0.85, 0.8), 7: (0.10, 0.9, 0.8)}
    trials = tuple(
        studies.trial(number, "CCCC", by_rung=(studies.objectives(*read),))
        for number, read in values.items()
    )
    study = studies.study()
    update = {"trials": trials, "recipe": {**study.recipe, "replicates": 2}}
    found = verdict(study.model_copy(update=update))
    assert found is not None
    assert found.ranks_quality
    assert (found.status(found.reference), found.front) == ("front", [])


def test_layouts_that_look_alike_are_told_apart_by_their_settings() -> None:
    wide = studies.spec("CA").replace(
        blocks=tuple(
            block.model_copy(
                update={
                    "mixers": tuple(
                        m.model_copy(update={"config": {"kernel": 7}}) if m.config else m
                        for m in block.mixers
                    )
                }
            )
            for block in studies.spec("CA").blocks
        )
    )
    words = telling([studies.spec("CA"), wide, studies.spec("AC")])
    assert words == ["short_conv kernel 3", "short_conv kernel 7", ""]


def test_page_is_self_contained_and_complete() -> None:
    page = whole(studies.study())
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', outside)
    for text in ("in_context_recall", "decode_p50_ms at 1024 on host", "load average", "0.40%"):
        assert text in page
    assert "out of memory while training &lt;killed&gt;" in page
    # The reference and six trials, each in the table and on its own page; the recommended on top.
    assert page.count('<svg class="stack"') == 15


def test_study_without_trials_still_renders() -> None:
    empty = studies.study().model_copy(
        update={"trials": (), "reference": None, "reference_point": None, "overhead": None}
    )
    assert "Nothing can be compared yet" in html.render(empty)


def test_diverged_trial_is_flagged_and_on_no_front(tmp_path: Path) -> None:
    study = studies.study()
    rung = studies.rung(0).model_copy(update={"diverged": True})
    worst = studies.objectives(0.0, 0.1, 0.1)
    lost = studies.trial(6, "CCCC", rungs=(rung,), by_rung=(worst,), diverged=True)
    trials = (*study.trials, lost)
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
    page = whole(studies.study().model_copy(update={"ended": "the space is exhausted"}))
    assert "Ended early: the space is exhausted." in page
    assert "286.1 [277.5, 297.5]" in page


def test_error_after_rung_0_is_shown() -> None:
    study = studies.study()
    hurt = study.trials[1].model_copy(update={"error": "rung 1: exit status <9>"})
    page = whole(study.model_copy(update={"trials": (hurt,)}))
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


def on_targets(*names: str) -> StudyRecord:
    """The study on other targets, each of them slower than the one before it."""

    def measured(trial: TrialRecord) -> TrialRecord:
        profiles = {name: studies.profile(0.5 + at / 10) for at, name in enumerate(names)}
        return trial.model_copy(update={"profiles": profiles})

    study = studies.study()
    assert study.reference is not None
    update = {"trials": tuple(map(measured, study.trials)), "reference": measured(study.reference)}
    return study.model_copy(update=update)


def test_ten_targets_can_be_read_at_80_columns(tmp_path: Path) -> None:
    """As many as in recipes/many-targets.yaml, whose names stay whole."""
    engines = ("onnx", "onnx-int8", "onnx-int4", "openvino", "openvino-int8", "openvino-int4")
    others = ("executorch", "executorch-8da4w", "onnx-one-thread", "openvino-one-thread")
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(on_targets(*engines, *others), None, console)
    lines = console.export_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("times the reference"))
    end = next(i for i, line in enumerate(lines) if i > start and line.startswith("└"))
    of_reference, of_stacks = "\n".join(lines[:start]), "\n".join(lines[start + 1 : end])
    # Milliseconds and MiB of the reference on each target.
    assert all(re.search(rf" {name} .* 1,024 ", of_reference) for name in (*engines, *others))
    assert re.search(r" openvino-one-thread .* 143\.4 .* 5\.60 .* 401 ", of_reference)
    # Of each of the four trained stacks both ends, and no column of one word a line.
    for end_of_range in ("1.40 openvino-one-thread", "0.50 onnx ", "0.50 to 1.40"):
        assert of_stacks.count(end_of_range) == 4
    assert end - start < 25


def test_long_names_of_targets_are_told_apart(tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(on_targets("living-room-phone-q4_0", "living-room-phone-q8_0"), None, console)
    text = console.export_text()
    # In the reference's table, and in that of ratios.
    for short in ("living-r...hone-q4_0", "living-r...hone-q8_0"):
        assert f"│ {short} " in text
        assert re.search(rf"│ \d\.\d\d {re.escape(short)} ", text)


def test_what_left_the_aggregate_and_what_no_runtime_runs_is_told(tmp_path: Path) -> None:
    refused = studies.trial(
        0, "CC", state="unsupported", error="host: tiny: a width of 7", profiles={}
    )
    changes = {
        "trials": (refused,),
        "scale": studies.scale("text"),
        "ended": "all was tried",
    }
    study = studies.study().model_copy(update=changes)
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(study, Path("report.html"), console)
    text = console.export_text()
    assert "unsupported 0 C C: host: tiny: a width of 7" in text
    assert "memorization does not count: 1.2 standard errors above chance" in text
    assert "quality is one score, text" in text
    assert "ended early: all was tried" in text
    assert (
        "0 of 1 candidates broke a device budget before any training; "
        "1 cannot run on a required target" in text
    )
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


def test_the_verdict_stands_on_top_with_the_next_command() -> None:
    study = studies.study()
    found = verdict(study)
    first = top(study, found, "runs/example")
    assert found is not None
    assert first.trial is not None
    assert first.trial.number in [row.trial.number for row in found.front]
    assert first.command == f"archloop train runs/example --trial {first.trial.number}"
    said = {line.what: line.verdict for line in first.lines}
    assert said["latency"] == "better"
    # What the recommendation costs is said where it is made.
    assert said["quality"] == "worse"
    assert "pays for that in quality, where it is worse than the reference" in first.words
    assert "decode step, ms at 1024 on host" in said
    # Noise that hides quality leaves nothing to recommend, and the page says what to do.
    nothing = top(noisy(), verdict(noisy()), "runs/example")
    assert (nothing.trial, nothing.lines) == (None, ())
    found = verdict(noisy())
    assert found is not None
    why = unranked(noisy(), found)
    assert why is not None
    assert why.seeds is not None
    assert why.seeds > 1
    assert nothing.command == f"archloop extend runs/example --seeds {why.seeds}"
    assert f"--seeds {why.seeds}`" in why.words


def test_a_study_that_was_stopped_goes_on_before_it_is_extended() -> None:
    study = noisy()
    last = study.trials[-1].model_copy(update={"state": "running", "by_rung": ()})
    stopped = study.model_copy(update={"trials": (*study.trials[:-1], last)})
    assert top(stopped, verdict(stopped), "runs/x").command == "archloop search runs/x"


def test_a_study_that_was_stopped_between_two_trials_goes_on() -> None:
    stopped = noisy().model_copy(update={"num_trials": 20})
    assert top(stopped, verdict(stopped), "runs/x").command == "archloop search runs/x"
    ended = stopped.model_copy(update={"ended": "its time of 3 h is spent"})
    assert top(ended, verdict(ended), "runs/x").command.startswith("archloop extend runs/x")


def test_what_is_better_without_proof_is_tied_and_never_a_price() -> None:
    study = studies.study()
    found = verdict(study)
    assert found is not None

    def unproven(row: Row) -> Row:
        member = row.place.member._replace(better_in=(2,))
        return row._replace(place=row.place._replace(member=member))

    first = top(study, found._replace(rows=tuple(map(unproven, found.rows))), "runs/x")
    said = {line.what: line.verdict for line in first.lines}
    assert (said["latency"], said["memory"]) == ("tied", "better")
    assert "in latency" not in first.words


def test_more_trainings_of_the_first_rung_are_no_remedy_for_a_higher_one() -> None:
    study = noisy()
    longer = {0: (0.61, 0.95, 0.9), 1: (0.47, 0.70, 0.6), 3: (0.35, 0.80, 0.7)}
    climbed = tuple(
        each.model_copy(
            update={"by_rung": (each.by_rung[0], studies.objectives(*longer[each.number]))}
        )
        if each.number in longer
        else each
        for each in study.trials
    )
    study = study.model_copy(update={"trials": climbed})
    found = verdict(study)
    assert found is not None
    assert found.comparison.rung == 1
    why = unranked(study, found)
    assert why is not None
    assert why.seeds is None
    assert "archloop extend" not in why.words
    assert top(study, found, "runs/x").command == ""


def test_where_all_that_was_trained_diverged_budgets_are_not_blamed() -> None:
    rung = studies.rung(0).model_copy(update={"diverged": True, "scores": {}})
    worst = studies.objectives(0.0, 0.9, 0.9)
    lost = studies.trial(0, "CCCC", rungs=(rung,), by_rung=(worst,), diverged=True)
    study = studies.study()
    study = study.model_copy(update={"trials": (lost, study.trials[2])})
    first = top(study, verdict(study), "runs/x")
    assert "diverged" in first.words
    assert first.command == ""


def test_a_longer_training_that_diverged_is_said_beside_the_place() -> None:
    study = studies.study()
    hurt = study.trials[0].model_copy(update={"diverged": True})
    study = study.model_copy(update={"trials": (hurt, *study.trials[1:])})
    shown = {each.trial.number: each for each in trials.shown(study, verdict(study))}
    assert shown[0].row is not None
    assert "diverged at rung 1" in [badge.words for badge in shown[0].badges]
    assert "diverged at rung 1" in html.render(study)


def test_the_next_command_names_the_study_wherever_it_lies() -> None:
    study = studies.study().model_copy(update={"trials": ()})
    assert top(study, None, "my runs/x").command == "archloop search 'my runs/x'"
    rejected = [trial for trial in studies.study().trials if trial.state == "rejected"]
    study = study.model_copy(update={"trials": tuple(rejected)})
    assert "kept the budgets" in top(study, verdict(study), "runs/x").words


def test_where_only_another_recipe_helps_no_command_is_offered(tmp_path: Path) -> None:
    study = noisy().model_copy(update={"scale": None})
    assert top(study, verdict(study), "runs/x").command == ""
    assert "Next:" not in html.render(study)


def test_each_trial_has_its_place_badges_and_lineage() -> None:
    study = studies.study()
    straddling = study.trials[5].model_copy(
        update={"straddles": ("decode_p50_ms/reference at 1024 on host: 1.1 [0.9, 1.2] around 1",)}
    )
    study = study.model_copy(update={"trials": (*study.trials[:5], straddling)})
    shown = {each.trial.number: each for each in trials.shown(study, verdict(study))}
    assert shown[2].status == "rejected"
    assert [badge.words for badge in shown[2].badges] == ["flagged"]
    assert shown[5].badges[0].words == "straddles decode_p50_ms at 1024"
    assert dict(shown[5].ancestors) == {0: "random", 1: "random"}
    assert shown[1].children == (3, 5)
    assert next(each.name for each in trials.shown(study, verdict(study))) == "reference"


@pytest.mark.ci
def test_a_page_of_300_trials_is_below_6_megabytes() -> None:
    """Sixteen blocks each, of five families, trained to the second rung."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(300):
        latency, memory, quality = rng.uniform(0.6, 1.0, 3)
        values = studies.objectives(quality, latency, memory)
        read = {name: values.values[name] for name in ("latency", "memory")}
        rungs = (studies.rung(0), studies.rung(1))
        pattern = "CA" + "".join(rng.choice(list("CASW"), 14))
        trials.append(
            studies.trial(
                number, pattern, rungs=rungs, by_rung=(values, values), readings=read, parents=(0,)
            )
        )
    page = html.render(studies.study().model_copy(update={"trials": tuple(trials)}))
    assert len(page.encode()) < 6_000_000
    # A browser draws few traces quickly; a phone scrolls through few rows; all are still there.
    assert page.count("trial %{customdata}, step") == 2
    assert 'id="more">all 301 trials</button>' in page
    assert page.count("<tr tabindex") == 301
    for text in ("What contributes", "one block more of a family", "Shares of the hypervolume"):
        assert text in page


def test_the_commit_of_the_code_stands_on_top() -> None:
    environment = {"archloop": "0.1.0", "commit": "0123abc+changes"}
    page = html.render(studies.study().model_copy(update={"environment": environment}))
    assert "commit 0123abc+changes" in page.partition("<section")[0]


def test_a_page_is_renewed_seldom_enough() -> None:
    now, written = 0.0, []

    def write() -> None:
        nonlocal now
        written.append(now)
        now += 2.0

    renewed = Renewed(write, lambda: now)
    while now < 3600:
        renewed()
        now += 10.0
    assert written[0] == 60.0
    assert 2.0 * len(written) <= 0.01 * now
    assert 'http-equiv="refresh"' in html.render(studies.study(), is_running=True)
    assert 'http-equiv="refresh"' not in html.render(studies.study())
