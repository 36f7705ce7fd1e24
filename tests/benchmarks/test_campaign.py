"""The campaign's stacks and the order in which they are measured."""

import json
from pathlib import Path

import pytest

import campaign
import cost_proxies
import proxies_table
from archloop.stack import cost


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of a published table take seconds each."""
    monkeypatch.setattr(proxies_table, "NUM_RESAMPLES", 200)


def test_every_second_stack_is_of_one_budget_and_the_others_are_not() -> None:
    sizes = [cost.num_params(campaign.drawn(0, number)) for number in range(12)]
    assert all(abs(size / campaign.BUDGET - 1) <= campaign.TOLERANCE for size in sizes[1::2])
    assert max(sizes[::2]) > 2 * min(sizes[::2])
    assert campaign.drawn(0, 3) == campaign.drawn(0, 3) != campaign.drawn(1, 3)


def test_all_targets_have_a_stack_before_the_next_one() -> None:
    keys = [key.split(" ") for key in campaign.order(["a", "b", "c"], range(4), 2, seed=0)]
    by_stack = [keys[at : at + 3] for at in range(0, len(keys), 3)]
    assert [turn[0][1:] for turn in by_stack] == [
        [number, process]
        for process, numbers in (("0", "0123"), ("1", "1302"))
        for number in numbers
    ]
    assert all(key[1:] == turn[0][1:] for turn in by_stack for key in turn)
    assert all({key[0] for key in turn} == {"a", "b", "c"} for turn in by_stack)
    assert len({tuple(key[0] for key in turn) for turn in by_stack}) > 1, "in random order"


@pytest.mark.parametrize(("group", "stacks"), [("all", 8), ("one budget", 4)])
def test_a_table_is_of_processes_joined_by_stack(group: str, stacks: int, tmp_path: Path) -> None:
    estimate = {"state_bytes": 1.0, "decode_flops": 5.0, "prefill_flops": 1.0}
    lines = [
        {
            "key": f"here {number} {process}",
            "target": "here",
            "number": number,
            "footprint": {"num_params": number, "estimated": {"64": estimate}},
            "weight_bytes": -number,
            "flags": [],
            "measured": {"64": dict.fromkeys(cost_proxies.FIGURES, number + 1 + process)},
        }
        for process, numbers in ((0, range(8)), (1, range(1, 8, 2)))
        for number in numbers
    ]
    file = tmp_path / "campaign.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    decode, *_ = cost_proxies.rows(campaign.read(file), "here", group)
    assert decode["stacks"] == stacks
    rank = decode["rank"]
    assert isinstance(rank, dict)
    assert rank["parameters"][0] == pytest.approx(1)
    assert rank["weight bytes"][0] == pytest.approx(-1)
    assert rank[cost_proxies.REPEATED][0] == pytest.approx(1), "of the four that have two"


def line(process: int, flags: list[str], decode_ms: float, number: int = 0) -> dict[str, object]:
    return {
        "key": f"here {number} {process}",
        "target": "here",
        "number": number,
        "flags": flags,
        "measured": {"64": {"decode_ms": decode_ms}},
    }


def test_what_was_disturbed_is_measured_again_and_kept(tmp_path: Path) -> None:
    busy = ["other processes used 40% of a core"]
    lines = [line(0, busy, 9.0), line(0, [], 1.0, number=1), line(0, busy, 9.0, number=2)]
    keys = campaign.order(["here"], range(2), 1, seed=0)
    assert campaign.disturbed(lines, keys) == ["here 0 1"], "2 was not asked for"
    lines += [line(1, busy, 8.0)]
    assert campaign.disturbed(lines, keys) == ["here 0 2"]
    lines += [line(2, [], 2.0)]
    assert campaign.disturbed(lines, keys) == []
    file = tmp_path / "campaign.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    first, second, third = campaign.read(file)
    assert (first["measured"]["64"], first["flags"]) == ([{"decode_ms": 2.0}], [])
    assert second["measured"]["64"] == [{"decode_ms": 1.0}]
    assert (third["measured"]["64"], third["flags"]) == ([{"decode_ms": 9.0}], busy)
