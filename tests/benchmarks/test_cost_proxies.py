"""Ranks of the benchmark of cost proxies, on records whose answer is known."""

import math
from pathlib import Path
from typing import Any

import pytest

import cost_proxies
import proxies_table


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of a published table take seconds each."""
    monkeypatch.setattr(proxies_table, "NUM_RESAMPLES", 200)


def record(number: int, slow: float) -> dict[str, Any]:
    """A stack whose steps take `slow` ms, whose parameters grow and whose state shrinks with it."""
    estimate = {"state_bytes": 1e6 / slow, "decode_flops": 5.0, "prefill_flops": 1e9 * slow}
    each = {"decode_ms": slow, "prefill_ms": 1 / slow, "memory_bytes": 1e6 + number % 2}
    return {
        "target": "here",
        "number": number,
        "footprint": {"num_params": 1e6 * slow, "estimated": {"64": estimate}},
        "weight_bytes": 4e6 * slow,
        "measured": {"64": [each, each]},
    }


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [record(number, 1 + (number * 7) % 12) for number in range(12)]


def test_ranks_of_what_grows_and_shrinks_with_a_proxy(records: list[dict[str, Any]]) -> None:
    decode, first_token, memory = cost_proxies.rows(records, "here", "all")
    assert (decode["stacks"], decode["context"]) == (12, 64)
    assert decode["spread"] == pytest.approx(12)
    assert decode["rank"]["parameters"] == pytest.approx((1, 1, 1))
    assert decode["rank"]["state bytes"] == pytest.approx((-1, -1, -1))
    assert math.isnan(decode["rank"]["decode FLOPs"][0]), "no order at all"
    assert decode["rank"][cost_proxies.REPEATED] == pytest.approx((1, 1, 1))
    assert first_token["rank"]["parameters"] == pytest.approx((-1, -1, -1))
    value, low, high = memory["rank"]["parameters"]
    assert low < value < high
    assert len(list(cost_proxies.table([decode, memory]))) == 4


def test_a_plot_has_every_stack(records: list[dict[str, Any]], tmp_path: Path) -> None:
    cost_proxies.plot(records, "here", tmp_path / "plots" / "a.svg")
    drawn = (tmp_path / "plots" / "a.svg").read_text()
    assert drawn.count("<use ") >= 12 * 15
