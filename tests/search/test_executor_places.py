"""How many jobs at once, and where, if the recipe leaves it to the machine."""

import pytest
import torch

from archloop.search.executors.places import num_jobs, places, training_threads, wants_mps
from archloop.search.recipe.recipe import Recipe
from search.stand_in import CONTEXTS, recipe

PHONE = {"phone": {"device": "android", "contexts": list(CONTEXTS)}}
CARD = {"card": {"runtime": "torch_cuda", "quant": "bf16", "contexts": list(CONTEXTS)}}


def asked(num_cards: int, **changes: object) -> Recipe:
    proxy = {"rungs": [10], "device": "cuda" if num_cards else "cpu"}
    return recipe(proxy=proxy, **changes)


@pytest.mark.parametrize(
    ("num_cards", "changes", "devices", "jobs"),
    [
        (0, {}, ["cpu"], 1),
        (0, {"targets": PHONE}, ["cpu"], 2),
        (0, {"executor": {"workers": 3}}, ["cpu"] * 3, 3),
        (1, {}, ["cuda"], 1),
        (1, {"targets": CARD}, ["cuda"], 1),
        (1, {"targets": CARD, "executor": {"per_device": 2}}, ["cuda"] * 2, 2),
        (1, {"targets": PHONE}, ["cuda"], 2),
        # The card that is measured is the first; trainings on the others go on beside it.
        (3, {"targets": CARD}, ["cuda:0", "cuda:1", "cuda:2"], 4),
        (2, {"executor": {"per_device": 2}}, ["cuda:0", "cuda:1"] * 2, 4),
        (3, {"executor": {"workers": 2}}, ["cuda:0", "cuda:1"], 2),
        (3, {"executor": {"devices": ["cuda:2"]}}, ["cuda:2"], 1),
    ],
)
def test_as_many_as_the_machine_has(monkeypatch, num_cards, changes, devices, jobs):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cards)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = asked(num_cards, **{"budgets": [], **changes})
    assert list(places(settings)) == devices
    assert num_jobs(settings) == jobs


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({}, 8),
        ({"executor": {"workers": 2}}, 4),
        ({"executor": {"workers": 3}}, 2),
        ({"executor": {"devices": ["cpu"] * 16}}, 1),
        ({"executor": {"workers": 2}, "threads": 6}, 6),
    ],
)
def test_trainings_share_the_cores(monkeypatch, changes, threads):
    monkeypatch.setattr("archloop.search.executors.places.usable_cores", lambda: 8)
    assert training_threads(recipe(budgets=[], **changes)) == threads


@pytest.mark.parametrize(
    ("num_cards", "executor", "wanted"),
    [
        (0, {"workers": 3}, False),
        (1, {}, False),
        (1, {"per_device": 4}, True),
        (1, {"workers": 2}, True),
        (1, {"per_device": 4, "cuda_mps": False}, False),
        (1, {"cuda_mps": True}, True),
        (2, {"workers": 2}, False),
        (2, {"per_device": 3}, True),
        (2, {"devices": ["cuda:1", "cuda:1"]}, True),
        (2, {"devices": ["cpu", "cpu", "cuda:1"]}, False),
        (1, {"name": "ray", "workers": 4}, False),
    ],
)
def test_cards_are_shared_through_mps_where_trainings_share_one(
    monkeypatch, num_cards, executor, wanted
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cards)
    assert wants_mps(asked(num_cards, budgets=[], executor=executor)) is wanted


def test_mps_is_refused_where_there_is_no_card():
    with pytest.raises(ValueError, match=r"executor.cuda_mps: trainings run on cpu, .* leave it"):
        asked(0, budgets=[], executor={"cuda_mps": True})
    with pytest.raises(ValueError, match="cuda_mps says nothing to executor ray"):
        asked(1, budgets=[], executor={"name": "ray", "cuda_mps": True})
