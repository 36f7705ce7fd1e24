"""What trials an hour are reckoned from, and the stacks that they are of."""

from pathlib import Path
from typing import Any

import pytest

import trials_per_hour
from archloop.proxy.record import Rung
from archloop.search.executors.base import Ended
from archloop.stack import cost


def ended(train_s: float, eval_s: float, seconds: float, tokens: int = 10_000_000) -> Ended:
    rung = Rung(
        index=0,
        num_steps=10,
        num_tokens=tokens,
        scores={},
        learning_rate=1e-3,
        losses=(),
        diverged=False,
        train_s=train_s,
        eval_s=eval_s,
    )
    return Ended(0, rung, None, seconds)


def arm(name: str, done: list[Ended], wall_s: float = 50.0) -> dict[str, Any]:
    cards, each = (int(word) for word in name.split("x"))
    found = trials_per_hour.figures(done, wall_s)
    tokens = found["tokens"] / max(found["trials"], 1)
    told = {"key": f"{name} {tokens / 1e6:g}M", "arm": name, "cards": cards, "cuda_mps": "on"}
    return told | {"at_once": cards * each} | found


def test_of_one_length_a_training_grows_as_a_whole() -> None:
    failed = Ended(0, None, ValueError("one line"), 3.0)
    found = arm("1x2", [ended(20.0, 2.0, 30.0), ended(40.0, 2.0, 45.0), failed])
    assert found["trials"] == 2
    assert found["failed"] == ["one line"]
    assert found["trials_an_hour"] == pytest.approx(2 * 3600 / 50)
    # 30 + 9 x 20 and 45 + 9 x 40 seconds of one place, and two places.
    rate = trials_per_hour.reckoned(found, [found])
    assert rate == pytest.approx(3600 * 2 * 2 / (210 + 405))


def test_of_two_lengths_what_precedes_the_first_step_does_not_grow() -> None:
    # 10 seconds before the first step, then 2 a million tokens.
    short = arm("1x1", [ended(22.0, 2.0, 25.0, 6_000_000)] * 2)
    long = arm("1x1", [ended(50.0, 2.0, 53.0, 20_000_000)] * 2)
    other = arm("1x6", [ended(90.0, 2.0, 93.0, 6_000_000)] * 2)
    records = [short, long, other]
    assert trials_per_hour.reckoned(long, records) == pytest.approx(3600 / (53 + 80 * 2))
    # Of the shorter one alone, and so a lower bound.
    assert trials_per_hour.reckoned(short, records) == pytest.approx(3600 / (25 + 94 * 22 / 6))


def test_a_card_trains_nothing_while_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    whole = int(trials_per_hour.TOKENS)
    one = arm("1x6", [ended(355.0, 2.0, 360.0, whole)])
    two = arm("2x6", [ended(355.0, 2.0, 360.0, whole)])
    trials_per_hour.table([one, two, arm("1x1", [])], profile_s=30.0)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines[1:3]]
    assert [float(row[-2]) for row in rows] == [60.0, 120.0]
    assert [float(row[-1]) for row in rows] == [40.0, 100.0]
    assert lines[3] == "2x6 100M against 1x6 100M: 1.00 as run, 2.00 reckoned"


@pytest.mark.ci
def test_stacks_are_equal_in_size_and_each_another(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    recipe = trials_per_hour.pilot_shaped(tmp_path, "cpu", 12, 256)
    specs = trials_per_hour.drawn(recipe, 6)
    assert len({spec.digest for spec in specs}) == 6
    assert {spec.num_blocks for spec in specs} == {12}
    sizes = [cost.num_params(spec) for spec in specs]
    assert max(sizes) < 1.02 * min(sizes)
    assert 10.9e6 < min(sizes) < 11.3e6
