"""What is shown while a study runs: one line a stage, or a panel that moves on a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from archloop.report.live import _Panel, display
from archloop.store.progress import Event, Likely

POINT = (0.0, 1.5, 1.5)
EVENTS = [
    Event("setup"),
    Event("noted", detail="recall does not count: its rows are short"),
    Event("reference", -1, detail="measured beside itself"),
    Event("propose", 0, reference_point=POINT),
    Event("profile", 0, reference_point=POINT, detail="gqa gqa", why="crossover of 3 and 5"),
    Event("train", 0, rung=1, reference_point=POINT, detail="gqa gqa"),
    Event(
        "told",
        0,
        num_told=1,
        num_trials=3,
        front_size=1,
        hypervolume=0.25,
        reference_point=POINT,
        seconds_left=185.0,
        detail="quality 0.500, latency 0.90, memory 0.80",
        state="complete",
        bites=(("decode_p50_ms at 2048 on here", 4),),
        front=lambda: (
            Likely(0, ("gqa", "gqa"), {"quality": 0.5, "latency": 0.9}, 0.75),
            Likely(-1, ("gqa",), {"quality": 0.4, "latency": 1.0}, 0.25),
        ),
    ),
    Event("finished", num_told=3, front_size=1, hypervolume=0.25, reference_point=POINT),
]
RESULT = "so far, noise aside: 1 undominated, hypervolume 0.2500 to (0, 1.5, 1.5)"


def shown(is_terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=160, highlight=False)
    with display(console) as listener:
        for event in EVENTS:
            listener(event)
            if is_terminal:
                listener.live.refresh()  # type: ignore[attr-defined]
    return file.getvalue()


def test_plain_lines_where_nobody_sees_a_line_move() -> None:
    lines = [line.partition("] ")[2] for line in shown(is_terminal=False).splitlines()]
    assert lines == [
        "preparing text and tokenizer",
        "recall does not count: its rows are short",
        "reference preset: measured beside itself",
        "trial 0: measuring gqa gqa (crossover of 3 and 5)",
        "trial 0: training (rung 1) gqa gqa",
        "trial 0 complete: quality 0.500, latency 0.90, memory 0.80; "
        + RESULT
        + ", about 3 min 05 s left",
        f"finished: {RESULT}",
    ]


@pytest.mark.parametrize(
    "text",
    ["recall does not count: its rows are short", "reference preset: measured beside itself"]
    + ["trial 0: training (rung 1)", "1/3", RESULT]
    + ["about 3 min 05 s left", "trial 0 complete: quality 0.500"]
    + ["(crossover of 3 and 5)", "75%", "reference", "decode_p50_ms at 2048 on here (4)"],
)
def test_a_terminal_sees_stage_trial_front_and_time_left(text: str) -> None:
    assert text in shown(is_terminal=True)


def drawn(panel: _Panel) -> str:
    console = Console(file=io.StringIO(), width=160, record=True)
    console.print(panel)
    return console.export_text()


def test_a_stage_counts_down_and_what_takes_longer_is_said() -> None:
    now = 0.0
    panel = _Panel(lambda: now)
    panel(Event("profile", 2, typical_s=40.0, detail="gqa gqa", why="random"))
    now = 15.0
    assert "trial 2: measuring A A (random), 15.0 s, about 25.0 s left" in drawn(panel)
    now = 50.0
    assert "50.0 s, longer than most" in drawn(panel)


def test_of_several_trials_at_once_each_has_a_line_until_it_is_told() -> None:
    panel = _Panel(lambda: 0.0)
    panel(Event("reference", -1, detail="measured beside itself"))
    panel(Event("profile", 0, detail="gqa"))
    panel(Event("train", 1, detail="gqa"))
    both = drawn(panel)
    assert "trial 0: measuring" in both
    assert "trial 1: training" in both
    assert "reference preset" not in both
    panel(Event("told", 0, state="failed"))
    assert "trial 0" not in drawn(panel)


def test_a_wait_for_a_device_says_who_has_it_and_takes_no_time_of_the_measurement() -> None:
    now = 0.0
    panel = _Panel(lambda: now)
    measuring = Event("profile", 2, num_told=2, num_trials=3, detail="gqa gqa", typical_s=30.0)
    panel(measuring)
    panel(Event("told", 1, num_told=3, num_trials=3, reference_point=POINT, state="rejected"))
    panel(replace(measuring, waits_for="host, which `archloop search b` (process 7) uses"))
    now = 100.0

    def drawn() -> str:
        console = Console(file=io.StringIO(), width=160, record=True)
        console.print(panel)
        return console.export_text()

    waiting = drawn()
    assert "trial 2: waiting for host, which `archloop search b` (process 7) uses" in waiting
    assert "then measuring" in waiting
    assert "left" not in waiting
    # The bar does not go back to what was known when the job was asked for.
    assert "3/3" in waiting
    panel(replace(measuring, waits_for=""))
    now = 110.0
    assert "trial 2: measuring" in drawn()
    assert "10.0 s, about 20.0 s left" in drawn()
