"""One finished study on a stand-in for devices and trainings, for tests that read what it found."""

from pathlib import Path

import pytest

from archloop.search.study import Study
from search.stand_in import StandIn, no_time, recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    Study(recipe(seeds=2, num_trials=9), runs, evaluator=StandIn(), clock=no_time).run()
    return runs / "test"
