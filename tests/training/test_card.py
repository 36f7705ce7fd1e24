"""Steps on a card: their order among what the caller does, shown with streams that only note it."""

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from archloop.training import card
from archloop.training.batch import Batch


class NotedStream:
    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: "NotedStream") -> None:
        self.events.append(f"{self.name} waits for {other.name}")


class NotedPasses:
    def __init__(self, model: nn.Module, events: list[str]) -> None:
        self.model, self.events, self.bad = model, events, torch.zeros(())

    def run(self, batches: Sequence[Batch]) -> card.Found:
        self.events.append("step")
        return card.Found(torch.ones(()), torch.ones(()), [])


def test_a_step_comes_after_what_the_caller_did_since_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as copying the weights for a checkpoint, once the steps before are waited for."""
    events: list[str] = []
    ids_BT = torch.zeros(1, 4, dtype=torch.int64)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: NotedStream("card", events))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: NotedStream("caller", events))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(card, "Passes", lambda model, *_: NotedPasses(model, events))
    steps = card.CardSteps(
        nn.Linear(2, 2), lambda step: [Batch(ids_BT, ids_BT)], [], None, lambda *_: torch.ones(()),
        "float32", first=0, end=2, wait_every=2,
    )  # fmt: skip
    try:
        steps.take(0)
        assert [done.step for done in steps.wait()] == [0]
        events.append("caller copies")
        steps.take(1)
        steps.wait()
    finally:
        steps.close()
    waits = ["card waits for caller", "step", "caller waits for card"]
    assert events == [*waits, "caller copies", *waits]
