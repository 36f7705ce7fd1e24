"""What trials an hour are reckoned from, and the stacks that they are of."""

from pathlib import Path

import pytest

import trials_per_hour
from archloop.proxy.record import Rung
from archloop.search.executors.base import Ended
from archloop.stack import cost


def ended(train_s: float, eval_s: float, seconds: float) -> Ended:
    rung = Rung(
        index=0,
        num_steps=10,
        num_tokens=10_000_000,
        scores={},
        learning_rate=1e-3,
        losses=(),
        diverged=False,
        train_s=train_s,
        eval_s=eval_s,
    )
    return Ended(0, rung, None, seconds)


def test_longer_trainings_take_the_same_start_and_scoring() -> None:
    done = [ended(20.0, 2.0, 30.0), ended(40.0, 2.0, 45.0)]
    failed = Ended(0, None, ValueError("one line"), 3.0)
    found = trials_per_hour.figures([*done, failed], wall_s=50.0, at_once=2)
    assert found["trials"] == 2
    assert found["failed"] == ["one line"]
    assert found["trials_an_hour"] == pytest.approx(2 * 3600 / 50)
    # 30 + 9 x 20 and 45 + 9 x 40 seconds of one place, and two places.
    assert found["reckoned_an_hour"] == pytest.approx(3600 * 2 * 2 / (210 + 405))


def test_a_card_trains_nothing_while_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arm = {"wall_s": 1.0, "trials_an_hour": 1.0, "tokens_a_second": 1.0, "cuda_mps": "on"}
    one = arm | {"key": "1x6", "cards": 1, "reckoned_an_hour": 60.0}
    two = arm | {"key": "2x6", "cards": 2, "reckoned_an_hour": 120.0}
    trials_per_hour.table([one, two], profile_s=30.0)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[1:3]]
    assert [float(row[-1]) for row in rows] == [40.0, 100.0]


def test_stacks_are_equal_in_size_and_each_another(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    recipe = trials_per_hour.pilot_shaped(tmp_path, "cpu", 12, 256)
    specs = trials_per_hour.drawn(recipe, 6)
    assert len({spec.digest for spec in specs}) == 6
    assert {spec.num_blocks for spec in specs} == {12}
    sizes = [cost.num_params(spec) for spec in specs]
    assert max(sizes) < 1.02 * min(sizes)
    assert 10.9e6 < min(sizes) < 11.3e6
