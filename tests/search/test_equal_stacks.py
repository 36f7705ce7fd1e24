"""A whole study of stacks that are all equal: nothing may be said of any of them."""

import math
from statistics import NormalDist

import pytest
from rich.console import Console

from archloop.findings.verdict import verdict
from archloop.profiling.record import Interval
from archloop.profiling.statistics import t_quantile
from archloop.report.outcome import print_outcome
from archloop.search.study import Study
from search.stand_in import StandIn, no_time, recipe, unit


def normal(*parts: object) -> float:
    """A normal draw that depends on the arguments alone."""
    return NormalDist().inv_cdf(min(max(unit(*parts), 1e-6), 1 - 1e-6))


class Equal(StandIn):
    """Every spec is the reference under another name: its processes and trainings differ by noise.

    Args:
        seed: of the noise.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def profile(self, spec, reference, look, directory):
        found = super().profile(reference, reference, look, directory)
        if spec == reference:
            return found
        here, count = found.profiles["here"], 2 * look
        sd = 0.02

        def ratio(name: str) -> Interval:
            value = math.exp(sd / math.sqrt(count) * normal(self.seed, spec.digest, name, look))
            own = sd * math.exp(0.3 * normal(self.seed, spec.digest, name, "sd"))
            half = t_quantile(0.975, count - 1) * own / math.sqrt(count)
            return Interval(value=value, low=value * math.exp(-half), high=value * math.exp(half))

        update = {"latency": ratio("latency"), "memory": ratio("memory")}
        return found.model_copy(update={"profiles": {"here": here.model_copy(update=update)}})

    def train(self, job, directory):
        rung = super().train(job, directory)
        noise = 0.05 * normal(self.seed, directory.parent.name, directory.name)
        # The stack that lacks the skill is an anchor and no candidate.
        value = 0.2 if directory.parent.parent.name == "anchors" else 0.6
        scores = {
            name: score.model_copy(update={"value": value + noise}) if name != "noise" else score
            for name, score in rung.scores.items()
        }
        return rung.model_copy(update={"scores": scores})


@pytest.mark.parametrize("seed", range(4))
def test_equal_stacks_are_tied_and_quality_is_not_ranked(tmp_path, seed, capsys) -> None:
    one_rung = {"rungs": [10], "training": {"schedule": "wsd"}}
    record = Study(
        recipe(num_trials=8, budgets=[], proxy=one_rung),
        tmp_path,
        evaluator=Equal(seed),
        clock=no_time,
    ).run()
    found = verdict(record)
    assert found is not None
    assert len(found.rows) == 8
    assert not found.front
    assert {row.place.member.status for row in found.rows} == {"tied"}
    assert not any(row.place.member.better_in for row in found.rows)
    assert not found.ranks_quality
    # Nothing is claimed, so nothing is replicated.
    assert all(trial.replicates is None for trial in record.trials)
    print_outcome(record, tmp_path / "report.html", Console(width=150))
    assert "this study cannot rank quality" in capsys.readouterr().out
