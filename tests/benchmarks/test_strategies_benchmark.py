"""The benchmark of strategies: landscapes with a known truth, tables that say what was found."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import strategies
from archloop.space.config import SpaceConfig
from archloop.space.opening import open_space
from archloop.space.seeding import from_layout


@pytest.mark.parametrize("kind", ["lfm", "random", "rugged"])
def test_a_landscape_is_one_function_with_the_reference_at_one(kind: str) -> None:
    space = open_space(SpaceConfig(**strategies.SPACE))
    one, same = (strategies.Landscape(kind, 3, space) for _ in range(2))
    genome = from_layout(space, strategies.REFERENCE)
    assert one.truth(genome) == same.truth(genome)
    assert one.truth(genome)[1:] == (1.0, 1.0)
    other = from_layout(space, ["gqa"] * 16)
    assert one.truth(other) != strategies.Landscape(kind, 4, space).truth(other)


def test_what_is_over_a_budget_is_told_without_quality() -> None:
    space = open_space(SpaceConfig(**strategies.SPACE))
    genome = from_layout(space, strategies.REFERENCE)
    over = strategies.answer(0, 0, genome, (0.5, 1.4, 1.0), "quiet", None)
    kept = strategies.answer(0, 0, genome, (0.5, 1.0, 1.0), "quiet", None)
    assert (over.state, kept.state) == ("rejected", "complete")
    assert set(over.figures) == {"latency", "memory"}
    assert over.margins["latency"].mean > 0 > kept.margins["latency"].mean


def test_shards_merge_to_one_table(tmp_path: Path, capsys, monkeypatch) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    monkeypatch.setattr(strategies, "COUNTS", (4, 6))
    for seed, file in enumerate(files):
        command = f"x --trials 6 --seeds 1 --first {seed} --landscapes lfm --out {file}"
        run = [*command.split(), "--strategies", "random", "random_uniform"]
        monkeypatch.setattr(sys, "argv", run)
        strategies.main()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["x", "--merge", *map(str, files)])
    strategies.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["strategy"], row["trials"], row["seeds"]) for row in rows] == [
        ("random", 4, 2),
        ("random_uniform", 4, 2),
        ("random", 6, 2),
        ("random_uniform", 6, 2),
    ]
    assert all(0 < row["hypervolume"] < 1 and 0 <= row["front"] <= 1 for row in rows)
    gain = rows[2]["gain_over_random_uniform"][0]
    assert np.isclose(gain, rows[2]["hypervolume"] - rows[3]["hypervolume"], atol=2e-4)
