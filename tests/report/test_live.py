"""What is shown while a study runs: one line a stage, or one line that moves on a terminal."""

import io

import pytest
from rich.console import Console

from archloop.report.live import display
from archloop.store.progress import Event

POINT = (0.0, 1.5, 1.5)
EVENTS = [
    Event("setup"),
    Event("reference", -1, detail="measured beside itself"),
    Event("propose", 0, reference_point=POINT),
    Event("profile", 0, reference_point=POINT, detail="gqa gqa"),
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
                listener.bar.refresh()  # type: ignore[attr-defined]
    return file.getvalue()


def test_plain_lines_where_nobody_sees_a_line_move() -> None:
    lines = [line.partition("] ")[2] for line in shown(is_terminal=False).splitlines()]
    assert lines == [
        "preparing text and tokenizer",
        "reference preset: measured beside itself",
        "trial 0: measuring gqa gqa",
        "trial 0: training (rung 1) gqa gqa",
        "trial 0 complete: quality 0.500, latency 0.90, memory 0.80; "
        + RESULT
        + ", about 3 min 05 s left",
        f"finished: {RESULT}",
    ]


@pytest.mark.parametrize(
    "text",
    ["reference preset: measured beside itself", "trial 0: training (rung 1)", "1/3", RESULT]
    + ["about 3 min 05 s left", "trial 0 complete: quality 0.500"],
)
def test_a_terminal_sees_stage_trial_front_and_time_left(text: str) -> None:
    assert text in shown(is_terminal=True)
