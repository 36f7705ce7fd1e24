"""A study of designs at one budget: each with the proxy it was given, the first the reference."""

import pytest

from archloop.findings.verdict import verdict
from archloop.search import plan
from archloop.search.designs import of_designs
from archloop.search.study import Study
from archloop.stack.spec import StackSpec
from report import studies
from search.stand_in import StandIn, no_time, recipe

DESIGNS = {name: studies.spec(pattern) for name, pattern in (("a", "CACA"), ("b", "AAAA"))}


def proxy(name: str, vocab_size: int) -> StackSpec:
    """Of another width than the space's, and as deep as the design."""
    return DESIGNS[name].replace(d_model=192, vocab_size=vocab_size)


def test_each_design_is_measured_and_its_own_proxy_trained(tmp_path):
    given = of_designs(recipe(), "designs", DESIGNS, proxy, trainings=2)
    vocab_size = plan.resolve(given).vocab_size
    record = Study(given, tmp_path, evaluator=StandIn(), clock=no_time).run()
    assert [trial.origin for trial in record.trials] == ["a", "b"]
    for trial in record.trials:
        assert (trial.state, trial.genome) == ("complete", None)
        assert trial.spec == DESIGNS[trial.origin]
        assert trial.proxy_spec == proxy(trial.origin, vocab_size)
        assert len(trial.scores_by_seed[0]) == 2
    assert record.reference is not None
    assert record.reference.spec == DESIGNS["a"]
    assert record.reference.proxy_spec == proxy("a", vocab_size)
    found = verdict(record)
    assert found is not None
    assert set(found.comparison.reliability) >= {"quality"}
    evaluator = StandIn()
    assert Study(given, tmp_path, evaluator=evaluator, clock=no_time).run() == record
    assert evaluator.calls == ["close"]


def test_a_proxy_of_another_vocabulary_is_refused_by_name(tmp_path):
    def other(name: str, vocab_size: int) -> StackSpec:
        return proxy(name, vocab_size + 1)

    given = of_designs(recipe(), "designs", DESIGNS, other, trainings=1)
    with pytest.raises(ValueError, match=r"specs\[0\].proxy.vocab_size="):
        plan.resolve(given)
