"""What an evaluation is: it asks a model by one verb, grades each example, and sums up as a score.

An evaluation is one file in `evals/tasks/`: a family of examples with right answers, drawn from a
split and a seed. `Task` here is the base of those whose examples are rows of token ids below its
own vocabulary, so that any decoder can train on it; `evals.text_tasks` has the bases for text.

Shape suffixes: N examples, T time.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError, invalid
from archloop.evals.verbs import Model, Verb

IGNORE = -100
"""Target value where no answer is asked; PyTorch's cross-entropy skips it."""

MAX_SIZE = 2**16
"""Largest vocabulary and length of a task: more would be no small model's task."""

Split = Literal["train", "test"]


class Score(BaseModel):
    """An evaluation's result: a mean over examples, with what is needed to judge it.

    Attributes:
        value: the score; larger is better where `perfect` is above `chance`.
        standard_error: of the value, over examples.
        chance: what guessing scores.
        perfect: what the best possible model scores.
        num_examples: examples scored.
        category: such as text, recall, memory.
        version: of the evaluation; scores of different versions do not compare.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    standard_error: float
    chance: float
    perfect: float
    num_examples: int
    category: str
    version: int = 1

    @property
    def normalized(self) -> float:
        """0 at chance, 1 at perfect, larger is better for every evaluation."""
        return (self.value - self.chance) / (self.perfect - self.chance)

    @property
    def signal(self) -> float:
        """Distance above chance in standard errors."""
        better = self.normalized * abs(self.perfect - self.chance)
        if self.standard_error > 0:
            return better / self.standard_error
        return math.copysign(math.inf, better) if better else 0.0


class Grades(NamedTuple):
    """Grades of examples, before they are summed up.

    Attributes:
        values_N: of each example.
        weights_N: what a value is divided by, such as bytes of text; None: each counts one.
        clusters_N: numbers from 0 on of what examples ask about, where several ask about the same
            and so are right or wrong together; None: each asks about something of its own.
    """

    values_N: NDArray[np.float64]
    weights_N: NDArray[np.float64] | None = None
    clusters_N: NDArray[np.int64] | None = None


class Evaluation(ABC):
    """A family of examples with right answers.

    Attributes:
        name: the plug-in's name, set by the registry.
        version: raised when scores change their meaning; results are keyed by name and version.
        category: what it tests.
        licence: of its data; ``generated`` where it draws its examples itself.
        verb: by which it asks.
        num_test: examples that a run takes if it is given no limit.
        is_given: its data holds its questions, which end; else it draws as many as one asks for.
        asks_its_corpus: its questions are what the training text says, and must stay there.
        Config: pydantic settings; the evaluation is made from them, or from None for the defaults.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    category: str = ""
    licence: str = "generated"
    verb: ClassVar[Verb]
    num_test: ClassVar[int] = 512
    is_given: ClassVar[bool] = False
    asks_its_corpus: ClassVar[bool] = False
    Config: ClassVar[Any]

    def __init__(self, config: Any = None) -> None:
        self.config = config or self.Config()

    @property
    @abstractmethod
    def chance(self) -> float:
        """Score of guessing."""

    @property
    def perfect(self) -> float:
        """Score of the best possible model."""
        return 1.0

    @property
    def examples_shared(self) -> str:
        """A name of its examples, by which evaluations that grade the same ones know each other."""
        return ""

    @property
    def data_digest(self) -> str:
        """A hash of the data that its examples come from; empty where its settings say them all.

        Raises:
            UserError: the data cannot be read.
        """
        return ""

    def missing(self) -> str:
        """What it needs and is not here, such as data to fetch, with the remedy; or nothing."""
        return ""

    def fetch(self) -> None:
        """Get what `missing` names, if that is one package.

        Raises:
            UserError: it cannot be downloaded, or is more than a package; with the remedy.
        """
        if self.missing():
            raise UserError(self.missing())

    @abstractmethod
    def grade(self, model: Model, split: Split, seed: int, num_examples: int) -> Grades:
        """Ask a model, and grade its answers.

        Args:
            model: asked by `verb` alone.
            split: which examples; those of ``train`` are for training.
            seed: of the examples.
            num_examples: how many.

        Raises:
            UserError: the settings allow too few different examples, or the model cannot be asked.
        """

    def run(
        self, model: Model, split: Split = "test", seed: int = 0, limit: int | None = None
    ) -> Score:
        """Score of a model. Arguments and errors as `grade`; `limit` replaces `num_test`."""
        num = self.num_test if limit is None else limit
        return self.score_of(self.grade(model, split, seed, num))

    def score_of(self, grades: Grades) -> Score:
        """The grades' mean, or ratio of sums, with its standard error over examples."""
        value, error = mean(grades) if grades.weights_N is None else ratio(grades)
        return Score(
            value=value,
            standard_error=error,
            chance=self.chance,
            perfect=self.perfect,
            num_examples=len(grades.values_N),
            category=self.category,
            version=self.version,
        )


def mean(grades: Grades) -> tuple[float, float]:
    """Mean grade of at least two examples and its standard error.

    Examples of one cluster vary together, so that what varies freely is the sum over a cluster: a
    dozen facts, each asked ten times, tell as much as a dozen examples at least, and not as 120.
    """
    num, value = len(grades.values_N), float(grades.values_N.mean())
    clusters_N = np.arange(num) if grades.clusters_N is None else grades.clusters_N
    moved_C = np.bincount(clusters_N, grades.values_N - value)
    num_clusters = len(moved_C)
    spread = num_clusters / max(1, num_clusters - 1)
    error = float(np.sqrt((moved_C**2).sum() * spread)) / num
    # Where all examples score alike the estimated error is 0, which a few examples cannot prove. It
    # counts as at least half of what one cluster can change.
    return value, max(error, 1 / (2 * num_clusters))


def ratio(grades: Grades) -> tuple[float, float]:
    """Sum of values over sum of weights and its standard error (delta method)."""
    values_N, weights_N = grades.values_N, grades.weights_N
    assert weights_N is not None
    num, value = len(values_N), float(values_N.sum() / weights_N.sum())
    residual_N = values_N - value * weights_N
    error = float(np.sqrt((residual_N**2).sum() / (num * (num - 1))) / weights_N.mean())
    return value, error


# --- rows of token ids --------------------------------------------------------------------------


class Examples(NamedTuple):
    """Token ids and, at each position, the token that should be predicted there or `IGNORE`."""

    ids_NT: NDArray[np.int64]
    targets_NT: NDArray[np.int64]


class TaskConfig(BaseModel):
    """Settings that every task has; a task's own config gives them defaults and adds to them.

    Attributes:
        seq_len: nominal length L in MAD's sense; an example has at most L + 1 tokens.
        num_train: examples of MAD's training set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int
    seq_len: int
    num_train: int


class Task(Evaluation):
    """Rows of token ids with targets, which a model can train on as well as be asked.

    Attributes:
        in_mixture: may be trained in a mixture with text.
        head: what the model needs on top: ``next_token``, its own output matrix, or
            ``auto_encoder``, which rebuilds a row from the last position.
        loss: of training: ``next_token``, or ``reconstruction`` of the whole row.
        shares_examples: train and test come from the same few examples, by design.
        Config: a `TaskConfig`.
    """

    verb: ClassVar[Verb] = "predict"
    in_mixture: ClassVar[bool] = True
    head: ClassVar[Literal["next_token", "auto_encoder"]] = "next_token"
    loss: ClassVar[Literal["next_token", "reconstruction"]] = "next_token"
    shares_examples: ClassVar[bool] = False

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to this, exclusive."""
        return int(self.config.vocab_size)

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

    def grade(self, model: Model, split: Split, seed: int, num_examples: int) -> Grades:
        ids_NT, targets_NT = self.examples(split, seed, num_examples)
        predictions_NT = model.predict(ids_NT, targets_NT != IGNORE)
        return Grades(self.score(predictions_NT, targets_NT))

    def at_length(self, factor: int) -> "Task":
        """The same task in rows `factor` times as long, to test beyond the trained length.

        Raises:
            UserError: the task's settings do not allow it.
        """
        longer = {**self.config.model_dump(), "seq_len": self.config.seq_len * factor}
        try:
            return type(self)(type(self.config).model_validate(longer))
        except ValidationError as error:
            raise invalid(error, sorted(type(self.config).model_fields), self.name) from error


class TaskInBits(Task):
    """A task whose answers stand in its rows, scored by the bits that they cost.

    The answer after a position is the next token of the row, so a model is asked for the
    likelihood of whole rows. A grade is the mean over the answers of an example.
    """

    verb: ClassVar[Verb] = "loglikelihood_rolling"

    @property
    def perfect(self) -> float:
        """Each answer is certain."""
        return 0.0

    def grade(self, model: Model, split: Split, seed: int, num_examples: int) -> Grades:
        """See `Evaluation.grade`."""
        ids_NT, targets_NT = self.examples(split, seed, num_examples)
        asked_NT = targets_NT != IGNORE
        # Position t is scored by the token at t + 1. The answer to the last position is therefore
        # appended to the row; where none is asked for there, token 0 fills the place.
        last_N1 = np.where(asked_NT[:, -1:], targets_NT[:, -1:], 0)
        logs = model.loglikelihood_rolling(list(np.concatenate([ids_NT, last_N1], 1)))
        bits_NT = np.stack(logs) / -math.log(2)
        return Grades((bits_NT * asked_NT).sum(1) / asked_NT.sum(1))
