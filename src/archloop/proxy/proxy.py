"""Proxy evaluation: one short training on text mixed with tasks, then a score for each.

`train_and_score` is what one trial costs.
"""

import math
import time

import numpy as np
import torch

from archloop.evals import bits_per_byte
from archloop.proxy import scoring, weights
from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import ProxyData, batches_of_step
from archloop.proxy.record import Rung, TrainJob
from archloop.stack.decoder import Decoder
from archloop.training import checkpoint as checkpoints
from archloop.training.loop import (
    OnStep,
    TrainingConfig,
    TrainingResult,
    random_state_kept,
    train,
    use_device,
)

TEXT = bits_per_byte.ALL
"""Name of the text's score among those of the tasks."""

KEPT_LOSSES = 200
"""Training losses that a result keeps, evenly spread."""


def train_and_score(
    job: TrainJob, data: ProxyData, config: ProxyConfig, on_step: OnStep | None = None
) -> Rung:
    """Train a proxy and score it: what a trial costs at a rung.

    Args:
        job: whose spec is at proxy width, with `data.vocab_size` tokens.
        data: from `prepare`.
        config: the recipe's.
        on_step: called after each step.

    Raises:
        ValueError: the spec cannot be built, or the checkpoint is of another one.
    """
    if job.spec.vocab_size != data.vocab_size:
        raise ValueError(
            f"the proxy has vocab_size={job.spec.vocab_size}, but text and tasks need "
            f"{data.vocab_size}; set it to that"
        )
    training = config.training_of(job.num_steps, job.learning_rate)
    decoder = _initial(job, use_device(config.device))
    result, continued_from = _train(decoder, job, data, config, training, on_step)
    if job.weights_to is not None and not result.diverged:
        weights.keep(decoder, data, job.weights_to)
    began = time.monotonic()
    scores = {} if result.diverged else scoring.evaluate(decoder, data, config)
    # Finite weights may still overflow on text that training did not see.
    diverged = result.diverged or not all(math.isfinite(s.value) for s in scores.values())
    return Rung(
        index=job.rung,
        num_steps=job.num_steps,
        num_tokens=result.num_tokens,
        scores={} if diverged else scores,
        learning_rate=training.learning_rate,
        losses=thinned(result.losses),
        diverged=diverged,
        continued_from=continued_from,
        train_s=result.seconds,
        eval_s=time.monotonic() - began,
        precision=training.precision,
    )


def _initial(job: TrainJob, device: torch.device) -> Decoder:
    """The decoder with its initial weights, which hang on the seed alone."""
    with random_state_kept():
        torch.manual_seed(job.seed)
        return Decoder(job.spec).to(device)


def _train(
    decoder: Decoder,
    job: TrainJob,
    data: ProxyData,
    config: ProxyConfig,
    training: TrainingConfig,
    on_step: OnStep | None,
) -> tuple[TrainingResult, int]:
    """Train in place, from and to the job's checkpoints; also the step that it went on from."""
    start = None
    if job.resume_from is not None and training.checkpoint_step is not None:
        start = checkpoints.read(job.resume_from)
    result = train(
        decoder,
        lambda step: batches_of_step(config, data, job.seed, step),
        training,
        job.seed,
        on_step,
        start=start,
    )
    if job.checkpoint_to is not None and result.checkpoint is not None:
        checkpoints.write(result.checkpoint, job.checkpoint_to)
    return result, 0 if start is None else start.step


def thinned(losses: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """At most `KEPT_LOSSES` of the finite losses, evenly spread, with the first and the last."""
    losses = tuple(entry for entry in losses if math.isfinite(entry[1]))
    if len(losses) <= KEPT_LOSSES:
        return losses
    kept = np.linspace(0, len(losses) - 1, KEPT_LOSSES).round().astype(int)
    return tuple(losses[i] for i in kept)
