"""Examples drawn ahead: the questions of many evaluations in one file of JSON lines.

A machine that has neither a network nor the packages and corpora of the questions scores a model by
such a file, and its results are those of the suite itself: a line holds what `questions`, or the
`pieces` of a text, gave for the packed seed and number. Evaluations that draw rows of tokens need
nothing but themselves, and stand there by their settings alone.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.evals import suites
from archloop.evals.base import Evaluation, Split
from archloop.evals.text_pieces import PiecesInBits
from archloop.evals.text_tasks import Choice, ChoiceTask, Question, ReplyTask
from archloop.files import write_atomic

logger = logging.getLogger(__name__)


class Packed(BaseModel):
    """One evaluation of a file.

    Attributes:
        name: that its result stands under.
        plugin: of the evaluation.
        settings: of its `Config`.
        version: of the evaluation; another one would be another score.
        chance: which may depend on the questions.
        seed: of the examples.
        limit: that they were drawn with; None: as many as the evaluation takes by itself.
        examples: that were drawn; None where they are drawn on the spot.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    plugin: str
    settings: dict[str, Any]
    version: int
    chance: float
    seed: int
    limit: int | None
    examples: list[Any] | None


def pack(
    evaluations: Mapping[str, Evaluation], file: Path, seed: int, limit: int | None = None
) -> None:
    """Draw the test examples of evaluations into a file.

    Raises:
        UserError: an evaluation misses its data, or has too few examples.
        OSError: the file cannot be written.
    """
    lines = []
    for name, evaluation in evaluations.items():
        if reason := evaluation.missing():
            raise UserError(f"{name}: {reason}")
        packed = Packed(
            name=name,
            plugin=evaluation.name,
            settings=evaluation.config.model_dump(mode="json"),
            version=evaluation.version,
            chance=evaluation.chance,
            seed=seed,
            limit=limit,
            examples=_drawn(evaluation, seed, evaluation.num_test if limit is None else limit),
        )
        lines.append(packed.model_dump_json() + "\n")
    write_atomic(file, "".join(lines).encode())


def unpack(file: Path, seed: int, limit: int | None = None) -> dict[str, Evaluation]:
    """The evaluations of a file, by name; a line that is none is left out and logged by number.

    Raises:
        UserError: the file cannot be read, holds no evaluation, or was packed by another seed,
            number of examples or version of an evaluation.
    """
    found: dict[str, Evaluation] = {}
    for number, line in enumerate(_lines(file), start=1):
        packed = _packed(line)
        if packed is None:
            logger.warning("%s: line %d is no packed evaluation and left out", file, number)
            continue
        if (packed.seed, packed.limit) != (seed, limit):
            raise UserError(
                f"{file} holds examples of seed {packed.seed} and limit {packed.limit}; ask for "
                "these, or pack others with archloop eval --pack"
            )
        found[packed.name] = _opened(packed, file)
    if not found:
        raise UserError(f"{file} holds no evaluation; make one with archloop eval --pack")
    return found


def limit_of(file: Path) -> int | None:
    """The number of examples of each evaluation that a file was packed by; None: all they take.

    Raises:
        UserError: the file cannot be read.
    """
    packed = next(filter(None, map(_packed, _lines(file))), None)
    return None if packed is None else packed.limit


def _lines(file: Path) -> list[str]:
    """The lines of a file, cut at newlines alone: text in JSON may hold any other line break."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return lines if lines[-1] else lines[:-1]


def _packed(line: str) -> Packed | None:
    try:
        return Packed.model_validate_json(line)
    except ValidationError:
        return None


def _drawn(evaluation: Evaluation, seed: int, num: int) -> list[Any] | None:
    if isinstance(evaluation, ChoiceTask | ReplyTask):
        return [list(question) for question in evaluation.questions("test", seed, num)]
    if isinstance(evaluation, PiecesInBits):
        return list(evaluation.pieces("test", seed, num))
    return None


def _opened(packed: Packed, file: Path) -> Evaluation:
    evaluation = suites.make(packed.plugin, packed.settings)
    if evaluation.version != packed.version:
        raise UserError(
            f"{file}: {packed.name} was packed at version {packed.version} and is at "
            f"{evaluation.version} here; pack it again"
        )
    if packed.examples is None:
        return evaluation
    examples = _read(evaluation, packed.examples, f"{file}: {packed.name}")
    digest = hashlib.sha256(json.dumps(packed.examples).encode()).hexdigest()
    # A subclass of the evaluation's own class, so that grading is that of the evaluation itself.
    graded: Any = type(evaluation)

    def drawn(self: Any, split: Split, seed: int, num_examples: int) -> list[Any]:
        if split != "test" or seed != packed.seed:
            raise UserError(f"{file} holds test examples of seed {packed.seed} alone")
        return examples[:num_examples]

    given = {
        "questions": drawn,
        "pieces": drawn,
        "chance": property(lambda self: packed.chance),
        "missing": lambda self: "",
        # Questions that were drawn ahead are asked as they are, whatever the model's tokens.
        "fitted": lambda self, *_: self,
        "data_digest": property(lambda self: digest),
    }
    opened: Evaluation = type(graded.__name__, (graded,), given)(evaluation.config)
    return opened


def _read(evaluation: Evaluation, examples: list[Any], where: str) -> list[Any]:
    """Examples as the evaluation knows them; JSON has no tuples."""
    try:
        if isinstance(evaluation, ChoiceTask):
            return [Choice(context, tuple(c), int(right)) for context, c, right in examples]
        if isinstance(evaluation, ReplyTask):
            return [Question(p, tuple(answers), _fixed(data)) for p, answers, data in examples]
        return [str(piece) for piece in examples]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: examples of another form ({error}); pack it again") from error


def _fixed(data: Any) -> Any:
    return tuple(_fixed(each) for each in data) if isinstance(data, list) else data
