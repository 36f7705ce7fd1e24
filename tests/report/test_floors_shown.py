"""Kernels beside their floors: the right table for the card, shown with what follows from it."""

import json

from rich.console import Console

from archloop import registry
from archloop.findings import floors
from archloop.report import html, summary
from archloop.report.outcome import print_outcome
from archloop.store.record import StudyRecord
from report import studies

CARD = {
    "device": "Some Processor, 16 cores, NVIDIA H200",
    "runtime": "torch_cuda",
    "quant": "bf16",
}


def on_card(**identity: str) -> StudyRecord:
    """The example study as if its target were a card."""
    study = studies.study()
    assert study.reference is not None
    profiles = {
        name: profile.model_copy(
            update={"identity": profile.identity.model_copy(update=CARD | identity)}
        )
        for name, profile in study.reference.profiles.items()
    }
    reference = study.reference.model_copy(update={"profiles": profiles})
    return study.model_copy(update={"reference": reference})


def test_a_table_is_found_by_card_engine_and_quantisation() -> None:
    (known,) = floors.floors(on_card())
    assert known.contexts == (4096, 32768)
    assert floors.floors(studies.study()) == []
    assert floors.floors(on_card(runtime="torch_eager")) == []
    assert floors.floors(on_card(quant="fp32")) == []
    assert floors.floors(on_card(device="Some Processor, 16 cores, NVIDIA H200 NVL")) == []
    assert floors.floors(on_card(device="Some Processor, 2 cores, 2 x NVIDIA H200")) != []


def test_rows_are_the_studys_mixers_as_they_were_measured() -> None:
    study = on_card()
    (known,) = floors.floors(study)
    assert [row.mixer for row in known.rows] == study.mixers
    by_mixer = {row.mixer: row for row in known.rows}
    assert [round(each or 0, 1) for each in by_mixer["gqa"].prefill] == [2.0, 1.6]
    assert [round(each or 0, 1) for each in by_mixer["gqa"].decode] == [3.5, 1.5]
    assert by_mixer["gqa"] in known.slow
    assert by_mixer["gqa"].worst == max(*by_mixer["gqa"].prefill, *by_mixer["gqa"].decode)
    assert [row.worst for row in known.slow] == sorted((r.worst for r in known.slow), reverse=True)
    assert all(f"{row.mixer} (up to {row.worst:.1f})" in known.words for row in known.slow)


def test_what_is_not_measured_is_not_fair_and_said() -> None:
    row = floors.Row("gla", (1.0, None), (2.0, 2.0))
    assert not row.is_fair
    assert floors.Row("gla", (1.0, 3.0), (2.0, 2.0)).is_fair


def test_page_terminal_and_json_have_it() -> None:
    study = on_card()
    (known,) = floors.floors(study)
    page = html.render(study)
    assert known.words in page
    assert "prefill at 32,768" in page
    assert "times its floor" not in html.render(studies.study())
    console = Console(record=True, width=400)
    print_outcome(study, None, console)
    assert known.words in console.export_text()
    facts = json.loads(json.dumps(summary.summarize(study)))
    (found,) = facts["floors"].values()
    assert found["mixers"]["gqa"]["prefill"].keys() == {"4096", "32768"}
    assert summary.summarize(studies.study())["floors"] == {}


def test_every_shipped_mixer_but_the_slow_loop_is_in_every_table() -> None:
    for table in floors.tables():
        assert set(table["rows"]) >= set(registry.shipped("mixers")) - {"cfc", "s4"}
