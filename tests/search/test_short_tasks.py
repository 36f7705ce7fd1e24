import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.search.anchoring import too_short
from archloop.search.plan import resolve
from archloop.search.recipe.recipe import load
from archloop.search.study import Study
from search.stand_in import StandIn, recipe, settings

RECIPES = Path(__file__).parents[2] / "recipes"


def test_a_task_that_a_window_sees_whole_leaves_quality_and_is_listed(tmp_path):
    """A window of 32 is full attention on rows of 32 tokens, so they tell nothing of it."""
    space = settings()["space"]
    mixers = {"short_conv": {"kernel": [3]}, "gqa": {"head_dim": 32}}
    proxy = {
        "rungs": [10],
        "tasks": {
            "in_context_recall": {"settings": {"vocab_size": 8, "seq_len": 32}},
            "multi_query_recall": {
                "settings": {"num_keys": 64, "num_pairs": 32, "seq_len": 128},
            },
        },
        "lengths": [1, 4],
        "training": {"seq_len": 128},
    }
    windowed = {**mixers, "swa": {"head_dim": 32, "window": 32}}
    given = recipe(space={**space, "mixers": windowed}, proxy=proxy)
    found = too_short(resolve(given))
    # At 4 times the trained length its rows are long enough.
    assert list(found) == ["in_context_recall"]
    assert "shorter than 4 x the 32 tokens" in found["in_context_recall"]
    path = tmp_path / "short.yaml"
    path.write_text(json.dumps(settings(space={**space, "mixers": windowed}, proxy=proxy)))
    shown = CliRunner().invoke(app, ["plan", str(path), "--no-probe"]).output
    assert "in_context_recall does not count: its rows of 32 tokens are shorter" in shown
    plain = CliRunner().invoke(app, ["plan", str(path), "--no-probe", "--json"]).stdout
    assert json.loads(plain)["not_counted"] == found
    # A study says so too, before anything is measured.
    heard = []

    def listen(event):
        heard.append(event)
        if event.phase == "reference":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Study(given, tmp_path, evaluator=StandIn()).run(listen)
    assert [event.phase for event in heard] == ["setup", "noted", "reference"]
    assert heard[1].detail == f"in_context_recall does not count: {found['in_context_recall']}"
    # Without windows, rows need only outlast a convolution's kernel.
    assert not too_short(resolve(recipe(space={**space, "mixers": mixers}, proxy=proxy)))


def test_recipes_train_windows_on_rows_of_four_and_compare_equal_parameters():
    """As shipped: nothing leaves quality for its length, and proxies are on the budget too."""
    for name in ("quickstart", "recall"):
        resolved = resolve(load(RECIPES / f"{name}.yaml"))
        assert not too_short(resolved)
        assert resolved.space.config.budget.trained
        window = resolved.space.config.mixers["swa"]["window"]
        assert (window.ship, window.proxy) in {(256, 32), (256, 16)}
