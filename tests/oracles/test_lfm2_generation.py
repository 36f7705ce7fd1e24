"""Greedy tokens and sampling filters against transformers' `generate`."""

from typing import Any

import pytest
import torch

from archloop import checkpoints
from archloop.generation.generation import generate
from archloop.generation.sampling import Sampling, filtered, penalise
from oracles import lfm2_peer

NAMES = (*lfm2_peer.DENSE, *lfm2_peer.MOE)


def peer_and_ours(name: str, folder: Any, num_layers: int | None) -> tuple[Any, Any]:
    settings = lfm2_peer.config(name, num_layers)
    peer = lfm2_peer.model(settings, seed=NAMES.index(name))
    return peer, checkpoints.load(lfm2_peer.saved(peer, folder))


@pytest.mark.parametrize(
    "name, num_layers",
    [(name, 4) for name in NAMES]
    + [pytest.param(name, None, marks=pytest.mark.slow) for name in NAMES],
)
def test_greedy_tokens_are_transformers(name: str, num_layers: int | None, tmp_path: Any) -> None:
    peer, ours = peer_and_ours(name, tmp_path, num_layers)
    prompt = torch.randint(1, lfm2_peer.VOCAB, (1, 11), generator=torch.Generator().manual_seed(3))
    theirs = peer.generate(prompt, max_new_tokens=256, do_sample=False)[0, 11:]
    (reply,) = generate(ours, prompt[0].tolist(), 256, chunk_size=4)
    assert reply.ids == theirs.tolist()
    assert len(set(reply.ids)) > 64


def test_greedy_tokens_of_ragged_rows_are_transformers(tmp_path: Any) -> None:
    """Each row against transformers alone: no neighbour shows (mlx-vlm #1946)."""
    peer, ours = peer_and_ours("lfm2-8b-a1b", tmp_path, 4)
    rows = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
    replies = generate(ours, rows, 24)
    for row, reply in zip(rows, replies, strict=True):
        theirs = peer.generate(torch.tensor([row]), max_new_tokens=24, do_sample=False)
        assert reply.ids == theirs[0, len(row) :].tolist()


def test_repetition_penalty_is_transformers(tmp_path: Any) -> None:
    peer, ours = peer_and_ours("lfm2-350m", tmp_path, 4)
    prompt = [4, 5, 6, 4]
    theirs = peer.generate(
        torch.tensor([prompt]), max_new_tokens=32, do_sample=False, repetition_penalty=1.3
    )
    (reply,) = generate(ours, prompt, 32, Sampling(repetition_penalty=1.3))
    assert reply.ids == theirs[0, 4:].tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=5),
        Sampling(temperature=1.0, top_p=0.6),
        Sampling(temperature=2.0, min_p=0.15),
        Sampling(temperature=0.3, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.05),
    ],
    ids=str,
)
def test_filters_are_transformers(sampling: Sampling) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(0)
    logits_BV = 3 * torch.randn(8, 100, generator=generator)
    ids_BT = torch.randint(0, 100, (8, 12), generator=generator)
    chain = [
        process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        process.TemperatureLogitsWarper(sampling.temperature),
        process.TopKLogitsWarper(sampling.top_k or 100),
        process.TopPLogitsWarper(sampling.top_p),
        process.MinPLogitsWarper(sampling.min_p),
    ]
    theirs = logits_BV
    for step in chain:
        theirs = step(ids_BT, theirs)
    seen_BV = torch.zeros(8, 100, dtype=torch.bool).scatter(1, ids_BT, True)
    ours = filtered(penalise(logits_BV, seen_BV, sampling.repetition_penalty), sampling)
    assert torch.equal(ours.isinf(), theirs.isinf())
    assert torch.allclose(ours, theirs)
