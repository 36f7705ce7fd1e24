"""A recipe's training and evaluation of proxies: the mixture of text and tasks, in settings."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from archloop.text import tokenizers
from archloop.text.corpora import CorpusConfig
from archloop.training.loop import TrainingConfig

Setting = bool | int | float | str


class TaskShare(BaseModel):
    """A task in the mixture.

    Attributes:
        settings: fields of the task's own config.
        batch_size: examples a step.
        weight: of the task's mean loss in the step's loss.
        num_eval: test examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Setting] = {}
    batch_size: int = Field(default=32, ge=1)
    weight: float = Field(default=1.0, gt=0)
    num_eval: int = Field(default=512, ge=2)


class ProxyConfig(BaseModel):
    """A recipe's training and evaluation of proxies.

    Attributes:
        corpus: the text.
        vocab_size: of the text's tokenizer.
        text_weight: of the text's mean loss in the step's loss.
        num_text_windows: held-out windows of `training.seq_len` tokens.
        text_parts: also score tokens that complete a repeated pair, and the others, apart.
        tasks: by plug-in name.
        lengths: scores are taken at each of these times the trained length, of text and tasks.
        rungs: optimiser steps of each rung, rising.
        device: where proxies are trained, in PyTorch's words.
        training: `num_steps` there is replaced by the rung's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: CorpusConfig = CorpusConfig()
    vocab_size: int = Field(default=1024, ge=tokenizers.MIN_VOCAB_SIZE, le=2**20)
    text_weight: float = Field(default=1.0, gt=0)
    num_text_windows: int = Field(default=256, ge=2)
    text_parts: bool = False
    tasks: dict[str, TaskShare] = {}
    lengths: tuple[Annotated[int, Field(ge=1, le=64)], ...] = (1,)
    rungs: tuple[int, ...] = Field(default=(200,), min_length=1)
    training: TrainingConfig = TrainingConfig()
    device: str = "cpu"

    @model_validator(mode="after")
    def _check(self) -> "ProxyConfig":
        if any(steps < 1 for steps in self.rungs) or sorted(set(self.rungs)) != list(self.rungs):
            raise ValueError(f"rungs={self.rungs} must be rising numbers of steps, at least 1")
        if 1 not in self.lengths:
            raise ValueError(f"lengths={self.lengths} must contain 1, the trained length")
        return self

    def training_of(self, num_steps: int, learning_rate: float | None) -> TrainingConfig:
        """Training settings of a rung, or of another number of steps."""
        changes: dict[str, float] = {"num_steps": num_steps}
        if learning_rate is not None:
            changes["learning_rate"] = learning_rate
        return TrainingConfig.model_validate({**self.training.model_dump(), **changes})
