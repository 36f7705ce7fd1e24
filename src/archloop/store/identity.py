"""Which study a folder or a database holds: written when it begins, compared before anything else.

A name says little: two recipes may share it. The card says which study this is, in the study's
folder and in its database alike, so that either can be moved, and neither is taken for another's.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.ranking.objectives import OBJECTIVES
from archloop.ranking.record import Objective

SCHEMA = 3
"""Of everything that a study keeps; raised by a change that older files cannot be read under."""


class Card(BaseModel):
    """A study's identity.

    Attributes:
        schema_version: what the study's files and rows follow.
        id: drawn when the study began; a second study of the same recipe has another.
        name: of the study.
        digest: of the recipe's settings and of its plug-ins' sources.
        settings: of the recipe, defaults included, without a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    id: str
    name: str
    digest: str
    settings: dict[str, Any]

    @classmethod
    def new(cls, settings: dict[str, Any], digest: str) -> "Card":
        """The card of a study that begins now."""
        name = str(settings["name"])
        study_id = uuid.uuid4().hex
        return cls(schema_version=SCHEMA, id=study_id, name=name, digest=digest, settings=settings)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the study optimises, in order."""
        return of_settings(self.settings)

    def to_json(self) -> str:
        """Text with a checksum, for a file."""
        card = self.model_dump(mode="json")
        return json.dumps({"sha256": _checksum(card), "card": card}, indent=1)


def of_settings(settings: Mapping[str, Any]) -> tuple[Objective, ...]:
    """The objectives of a recipe's settings."""
    given = settings.get("objectives")
    if given is None:
        return OBJECTIVES
    return tuple(Objective.model_validate(each) for each in given)


def parse(content: bytes, where: str) -> Card:
    """The card that a file has.

    Raises:
        UserError: the file is damaged, or of a version of archloop with another schema.
    """
    try:
        file = json.loads(content)
        if "card" not in file and "settings" in file:
            raise _other_schema(where, 0)
        card = file["card"]
        if file["sha256"] != _checksum(card):
            raise ValueError("the checksum differs")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: damaged ({error}); restore it from a copy") from error
    return of_data(card, where)


def of_data(card: Any, where: str) -> Card:
    """A card from plain data, such as a database keeps; None there means a study without one.

    Raises:
        UserError: the study follows another schema.
    """
    version = card.get("schema_version", 0) if isinstance(card, dict) else 0
    if version != SCHEMA:
        raise _other_schema(where, version)
    try:
        return Card.model_validate(card)
    except ValidationError as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: damaged ({what}); restore it from a copy") from error


def difference(kept: Any, given: Any, path: str = "") -> str:
    """The first setting in which two recipes differ, in words; empty if there is none.

    How many work at a study, and where, is no part of what it is: `executor` may differ.
    """
    if isinstance(kept, dict) and isinstance(given, dict):
        for key in dict.fromkeys([*kept, *given]):
            if not path and key == "executor":
                continue
            inner = f"{path}.{key}" if path else str(key)
            found = difference(kept.get(key), given.get(key), inner)
            if found:
                return found
        return ""
    if kept == given:
        return ""
    return f"{path} is {str(given)[:60]} and was {str(kept)[:60]}"


def _other_schema(where: str, version: object) -> UserError:
    return UserError(
        f"{where}: a study that another version of archloop keeps (schema {version}, this one has "
        f"{SCHEMA}); read it with that version, or start anew under another name"
    )


def _checksum(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
