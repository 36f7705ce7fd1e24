"""Running a suite on a model: one file an evaluation, so that a stopped run goes on.

1. An evaluation whose file is whole, and of the same model, settings, data, seed and number of
   examples, is taken from it.
2. Every other one is run; its score and the grade of each example are written in one step.
3. The scores are summed up, see `evals.summary`.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.evals import summary
from archloop.evals.base import Evaluation, Grades, Score
from archloop.evals.summary import Summary, influence
from archloop.evals.verbs import Model
from archloop.files import write_atomic


class Result(BaseModel):
    """One evaluation of one model.

    Attributes:
        key: hash of model, evaluation, version, settings, data, seed and number of examples.
        grades: of each example.
        weights: what each grade is divided by; None: each counts one.
        examples: names the examples where other evaluations grade the same; empty: none does.
        seconds: that it took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    key: str
    score: Score
    grades: tuple[float, ...]
    weights: tuple[float, ...] | None
    examples: str = ""
    seconds: float

    @property
    def graded(self) -> Grades:
        """Grades as the evaluation gave them."""
        return Grades(
            np.array(self.grades), None if self.weights is None else np.array(self.weights)
        )


def run(
    model: Model,
    identity: str,
    evaluations: Mapping[str, Evaluation],
    folder: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    on_result: Callable[[Result, bool], None] = lambda *_: None,
) -> dict[str, Result]:
    """Run evaluations, or go on with them.

    Args:
        model: asked by each evaluation's verb.
        identity: of the model: other weights or another tokenizer, another identity.
        evaluations: by the name that results stand under.
        folder: keeps ``<name>.json`` of each.
        seed: of the examples.
        limit: examples of each; None: as many as each takes by itself.
        on_result: told of each result and whether it was there already.

    Raises:
        UserError: the model cannot be asked by one of the verbs, its answers are no numbers, or
            the data of an evaluation cannot be read.
        OSError: the folder cannot be written.
    """
    results: dict[str, Result] = {}
    for name, evaluation in evaluations.items():
        key = _key(identity, evaluation, seed, limit)
        file = folder / f"{name}.json"
        result = _read(file, key)
        is_known = result is not None
        if result is None:
            result = _run(model, name, key, evaluation, seed, limit)
            write_atomic(file, (result.model_dump_json(indent=1) + "\n").encode())
        results[name] = result
        on_result(result, is_known)
    return results


def summarise(results: Mapping[str, Result]) -> Summary:
    """What results come to; those that grade the same examples share their error."""
    influences = {
        name: (result.examples or name, influence(result.score, result.graded))
        for name, result in results.items()
    }
    return summary.summarise({name: r.score for name, r in results.items()}, influences)


def describe(name: str, evaluation: Evaluation) -> dict[str, Any]:
    """What a listing says of an evaluation, as JSON data."""
    return {
        "name": name,
        "evaluation": evaluation.name,
        "version": evaluation.version,
        "category": evaluation.category,
        "verb": evaluation.verb,
        "chance": evaluation.chance,
        "perfect": evaluation.perfect,
        "licence": evaluation.licence,
        "num_examples": evaluation.num_test,
        "settings": evaluation.config.model_dump(mode="json"),
    }


def _run(
    model: Model, name: str, key: str, evaluation: Evaluation, seed: int, limit: int | None
) -> Result:
    began = time.monotonic()
    num = evaluation.num_test if limit is None else limit
    grades = evaluation.grade(model, "test", seed, num)
    score = evaluation.score_of(grades)
    if not math.isfinite(score.value):
        raise UserError(
            f"{name}: the model's answers are not finite numbers; its weights may be damaged, or "
            "its dtype too narrow for them"
        )
    return Result(
        name=name,
        key=key,
        score=score,
        grades=tuple(grades.values_N.tolist()),
        weights=None if grades.weights_N is None else tuple(grades.weights_N.tolist()),
        examples=evaluation.examples_shared,
        seconds=time.monotonic() - began,
    )


def _read(file: Path, key: str) -> Result | None:
    """A finished result of this key; None where it must be run."""
    try:
        result = Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    return result if result.key == key else None


def _key(identity: str, evaluation: Evaluation, seed: int, limit: int | None) -> str:
    settings = evaluation.config.model_dump(mode="json")
    asked = [evaluation.name, evaluation.version, settings, evaluation.data_digest, seed, limit]
    return hashlib.sha256(json.dumps([identity, *asked], sort_keys=True).encode()).hexdigest()
