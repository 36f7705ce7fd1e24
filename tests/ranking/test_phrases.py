"""Budgets and objectives as a command line says them."""

import pytest

from archloop.errors import UserError
from archloop.ranking import phrases
from archloop.ranking.budgets import Budget


@pytest.mark.parametrize(
    "budget",
    [
        Budget(metric="ttft_ms", limit=400),
        Budget(metric="decode_p50_ms", limit=1.12, relative=True, context=1024),
        Budget(metric="peak_memory_bytes", limit=3e8, target="phone"),
        Budget(metric="decode_p95_ms", limit=0.5, relative=True, context=64, target="a-b.c"),
    ],
)
def test_a_budget_is_read_from_its_own_words(budget: Budget) -> None:
    assert phrases.budget(str(budget)) == budget


def test_units_are_those_of_the_metric() -> None:
    assert phrases.budget("peak_memory_bytes<=1.5GiB").limit == 1.5 * 2**30
    assert phrases.budget("ttft_ms <= 2s at 4096").limit == 2000.0
    assert phrases.budget("ttft_ms <= 1e2").limit == 100.0


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ttft_ms", "give <metric> <= <limit>"),
        ("tftt_ms <= 4", "did you mean 'ttft_ms'"),
        ("ttft_ms <= 4GB", "is in none of GB; give x, ms, s"),
        ("ttft_ms <= 0", "greater than 0"),
        ("ttft_ms <= 1.2.3", "is no number"),
    ],
)
def test_what_is_no_budget_is_one_line_with_a_remedy(text: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        phrases.budget(text)


def test_objectives_by_their_figure() -> None:
    assert phrases.objective("memory").direction == "minimize"
    assert phrases.objective("prefill_tok_per_s").direction == "maximize"
    recall = phrases.objective("quality:recall")
    assert (recall.category, recall.direction) == ("recall", "maximize")
    assert phrases.objective("ttft_ms@worst").contexts == "worst"
    for wrong in ("speed", "ttft_ms@best", "latency@worst", "quality:recall@worst"):
        with pytest.raises(UserError, match="objective"):
            phrases.objective(wrong)
