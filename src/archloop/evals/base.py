"""What an evaluation is: a task makes examples, a model predicts, the task scores each example.

A task is one file in `evals/tasks/`. Its examples are token ids below its own `vocab_size`, with
targets only where an answer is asked, so that any decoder can train on it and be scored by it.

Shape suffixes: N examples, T time.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

IGNORE = -100
"""Target value where no answer is asked; PyTorch's cross-entropy skips it."""

MAX_SIZE = 2**16
"""Largest vocabulary and length of a task: more would be no small model's task."""

Split = Literal["train", "test"]


class Examples(NamedTuple):
    """Token ids and, at each position, the token that should be predicted there or `IGNORE`."""

    ids_NT: NDArray[np.int64]
    targets_NT: NDArray[np.int64]


class Score(BaseModel):
    """A task's result: a mean over examples, with what is needed to judge it.

    Attributes:
        value: the score, larger is better unless `lower_is_better`.
        standard_error: of the value, over examples.
        chance: what guessing scores.
        perfect: what the best possible model scores.
        num_examples: examples scored.
        category: such as text, recall, memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    standard_error: float
    chance: float
    perfect: float
    num_examples: int
    category: str

    @property
    def normalized(self) -> float:
        """0 at chance, 1 at perfect, larger is better for every task."""
        return (self.value - self.chance) / (self.perfect - self.chance)

    @property
    def signal(self) -> float:
        """Distance above chance in standard errors."""
        better = self.normalized * abs(self.perfect - self.chance)
        if self.standard_error > 0:
            return better / self.standard_error
        return math.copysign(math.inf, better) if better else 0.0


class TaskConfig(BaseModel):
    """Settings that every task has; a task's own config gives them defaults and adds to them.

    Attributes:
        seq_len: of an example as MAD counts it, at least its number of tokens less one.
        num_train: size of MAD's training set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int
    seq_len: int
    num_train: int


class Task(ABC):
    """A family of examples with right answers.

    Attributes:
        name: the plug-in's name, set by the registry.
        category: what it tests.
        mixable: can be trained in a mixture with text, by next-token prediction.
        shares_examples: train and test come from the same few examples, by design.
        Config: a `TaskConfig`; the task is made from one, or from None for the defaults.
    """

    name: ClassVar[str] = ""
    category: ClassVar[str] = ""
    mixable: ClassVar[bool] = True
    shares_examples: ClassVar[bool] = False
    Config: ClassVar[Any]

    def __init__(self, config: Any = None) -> None:
        self.config = config or self.Config()

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to this, exclusive."""
        return int(self.config.vocab_size)

    @property
    @abstractmethod
    def chance(self) -> float:
        """Score of guessing."""

    @abstractmethod
    def examples(self, split: Split, seed: int, num_examples: int) -> Examples:
        """Examples of a split, a pure function of the arguments; train and test do not overlap.

        Raises:
            UserError: there are too few different examples for the settings.
        """

    def score(
        self, predictions_NT: NDArray[np.int64], targets_NT: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Score of each example from the predicted token at every position, (N,).

        Unless a task says otherwise, the share of its targets that were predicted.
        """
        asked_NT = targets_NT != IGNORE
        right_NT = (predictions_NT == targets_NT) & asked_NT
        share_N: NDArray[np.float64] = right_NT.sum(1) / np.maximum(1, asked_NT.sum(1))
        return share_N
