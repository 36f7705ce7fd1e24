"""The benchmark of repeated studies: which claims two studies make of the same stack."""

import pytest

import repeated
from archloop.search.study import Study
from search.stand_in import StandIn, no_time, recipe


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Two studies that differ in the seed of their trainings, on a device without noise."""
    runs = tmp_path_factory.mktemp("runs")
    return [
        repeated.said(
            Study(
                recipe(name=f"seed-{seed}", seed=seed, num_trials=5, budgets=[]),
                runs,
                evaluator=StandIn(),
                clock=no_time,
            ).run()
        )
        for seed in (1, 2)
    ]


def test_studies_of_one_device_agree_on_what_both_tried(studies):
    one, other = studies
    shared, against = repeated.compared(one, other)
    assert shared >= 1
    assert not against
    assert one.claims != other.claims


def test_what_excludes_the_other_is_found(studies):
    one, _ = studies
    digest = next(key for key, claims in one.claims.items() if claims)
    claims = {**one.claims, digest: frozenset({"front", "kept"})}
    opposite = {**one.claims, digest: frozenset({"dominated"})}
    _, against = repeated.compared(one._replace(claims=claims), one._replace(claims=opposite))
    assert against == [one.layouts[digest]]
    # What only one of two says, such as faster beyond doubt, contradicts nothing.
    silent = {**one.claims, digest: frozenset()}
    assert repeated.compared(one._replace(claims=claims), one._replace(claims=silent))[1] == []
