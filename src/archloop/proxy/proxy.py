"""Proxy evaluation: one short training on text mixed with tasks, then a score for each.

`train_and_score` is what one trial costs.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from archloop.evals import bits_per_byte
from archloop.evals.base import Score
from archloop.proxy import scoring
from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import ProxyData, batches_of_step
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.training import checkpoint as checkpoints
from archloop.training.loop import OnStep, train
from archloop.training.steps import PrecisionName

TEXT = bits_per_byte.ALL
"""Name of the text's score among those of the tasks."""

KEPT_LOSSES = 200
"""Training losses that a result keeps, evenly spread."""


class ProxyResult(BaseModel):
    """What a proxy training and its evaluation gave.

    Attributes:
        scores: by task, with the text's under `TEXT`; empty when the training diverged.
        losses: (step, loss), thinned.
        num_tokens: trained on, text and tasks, from the first step.
        precision: of products and activations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: dict[str, Score]
    losses: tuple[tuple[int, float], ...]
    num_tokens: int
    diverged: bool
    learning_rate: float
    seconds_train: float
    seconds_eval: float
    precision: PrecisionName = "float32"


def train_and_score(
    spec: StackSpec,
    data: ProxyData,
    config: ProxyConfig,
    rung: int,
    seed: int,
    learning_rate: float | None = None,
    *,
    resume_from: Path | None = None,
    checkpoint_to: Path | None = None,
    on_step: OnStep | None = None,
) -> ProxyResult:
    """Train a proxy and score it: what a trial costs at a rung.

    Args:
        spec: at proxy width, with `data.vocab_size` tokens.
        data: from `prepare`.
        config: the recipe's.
        rung: index into `config.rungs`.
        seed: of initial weights and of the order of the data.
        learning_rate: replaces that of `config.training`.
        resume_from: checkpoint of the rung before (wsd); cosine trains from the start and
            ignores it.
        checkpoint_to: where to leave a checkpoint for the next rung (wsd).
        on_step: called after each step.

    Raises:
        ValueError: the spec cannot be built, or the checkpoint is of another one.
    """
    if spec.vocab_size != data.vocab_size:
        raise ValueError(
            f"the proxy has vocab_size={spec.vocab_size}, but text and tasks need "
            f"{data.vocab_size}; set it to that"
        )
    training = config.training_of(rung, learning_rate)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = Decoder(spec).to(config.device)
    start = None
    if resume_from is not None and training.checkpoint_step is not None:
        start = checkpoints.read(resume_from)
    result = train(
        decoder,
        lambda step: batches_of_step(config, data, seed, step),
        training,
        seed,
        on_step,
        start=start,
    )
    if checkpoint_to is not None and result.checkpoint is not None:
        checkpoints.write(result.checkpoint, checkpoint_to)
    began = time.monotonic()
    scores = {} if result.diverged else scoring.evaluate(decoder, data, config)
    # Finite weights may still overflow on text that training did not see.
    diverged = result.diverged or not all(math.isfinite(s.value) for s in scores.values())
    return ProxyResult(
        scores={} if diverged else scores,
        losses=thinned(result.losses),
        num_tokens=result.num_tokens,
        diverged=diverged,
        learning_rate=training.learning_rate,
        seconds_train=result.seconds,
        seconds_eval=time.monotonic() - began,
        precision=training.precision,
    )


def thinned(losses: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """At most `KEPT_LOSSES` of the finite losses, evenly spread, with the first and the last."""
    losses = tuple(entry for entry in losses if math.isfinite(entry[1]))
    if len(losses) <= KEPT_LOSSES:
        return losses
    kept = np.linspace(0, len(losses) - 1, KEPT_LOSSES).round().astype(int)
    return tuple(losses[i] for i in kept)
