"""A proxy training as it is asked for and as it came out: one record each, for all who pass it on.

A study makes the job, a worker does it, the store keeps the rung. Nothing here needs PyTorch, so a
report can read what was trained where it is not installed.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from archloop.evals.base import Score
from archloop.stack.spec import StackSpec


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainJob(_Record):
    """One proxy training.

    Attributes:
        spec: at proxy width.
        rung: index into the recipe's rungs; tuning and probes train at rung 0 as well.
        num_steps: of the rung, or of a tuning run.
        seed: of initial weights and the order of the data.
        learning_rate: peak; None takes the recipe's.
        resume_from: checkpoint of the rung before, if it left one (wsd; cosine trains from the
            start and ignores it).
        checkpoint_to: where a checkpoint for the next rung may be left (wsd).
        weights_to: folder for the trained weights and their tokenizer; None: they are not kept.
    """

    spec: StackSpec
    rung: int = Field(default=0, ge=0)
    num_steps: int = Field(ge=1)
    seed: int
    learning_rate: float | None = None
    resume_from: Path | None = None
    checkpoint_to: Path | None = None
    weights_to: Path | None = None


class Rung(_Record):
    """What one proxy training and its evaluation gave.

    Attributes:
        index: 0 is the cheapest rung; objectives of different rungs are not compared.
        num_steps: optimiser steps, from the first.
        num_tokens: trained on, text and tasks, from the first step.
        scores: by task, with the text's among them; empty when the training diverged. The
            aggregate uses those that the reference preset passed.
        learning_rate: that was used.
        losses: training loss, thinned, as (step, loss).
        diverged: the loss stopped being finite.
        continued_from: step of the checkpoint that this training went on from; 0: it was trained
            from its seed, as the first rung is, and one whose checkpoint is gone.
        train_s: wall time of the training.
        eval_s: wall time of the evaluation.
        precision: of the training's products and activations.
        cuda_mps: it shared a card with other trainings through NVIDIA's Multi-Process Service, so
            its seconds are not those of a card of its own.
    """

    index: int
    num_steps: int
    num_tokens: int
    scores: dict[str, Score]
    learning_rate: float
    losses: tuple[tuple[int, float], ...]
    diverged: bool
    continued_from: int = 0
    train_s: float
    eval_s: float
    precision: Literal["float32", "bfloat16"] = "float32"
    cuda_mps: bool = False
