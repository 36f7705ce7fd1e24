"""What the user can mend: the one class of error that ends a command in a line, not a traceback.

A recipe, spec, corpus, checkpoint or option that cannot work is a `UserError`. A call with wrong
arguments is a plain `ValueError`, and what must never be is an assertion: from the command line
both are our own mistakes, and keep their traceback.
"""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys",
    "model": "a mapping of keys",
}
"""What a value must be, by the first word of pydantic's error type."""


class UserError(ValueError):
    """What the user gave cannot work; the message is one line and says how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def invalid(error: "ValidationError", known: Sequence[str] = (), where: str = "") -> UserError:
    """The first problem that pydantic found in what the user gave: field, value, what is allowed.

    Args:
        error: pydantic's.
        known: fields that there are, for a name that is none of them.
        where: what the fields belong to; default: the model's name.
    """
    first = error.errors(include_url=False)[0]
    where = where or error.title
    path = ".".join(str(part) for part in first["loc"])
    if not path:
        return UserError(f"{where}: {reason(first)}")
    if first["type"] == "extra_forbidden":
        near = suggest(path, known) if known else "remove it"
        return UserError(f"{where} has no setting {path!r}; {near}")
    return UserError(f"{where}.{path}={shown(first['input'])}: {reason(first)}")


def suggest(wrong: str, known: Sequence[str]) -> str:
    """A did-you-mean clause for an error message."""
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    if near:
        # Beside one that is meant most likely, others that are only somewhat alike confuse.
        alike = [difflib.SequenceMatcher(None, name, wrong).ratio() for name in near]
        near = [name for name, r in zip(near, alike, strict=True) if r > max(alike) - 0.3]
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(known)


def reason(problem: "ErrorDetails") -> str:
    """What a value must be, in plain words."""
    error_type, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    if error_type in ("value_error", "assertion_error"):
        return message
    if error_type == "int_parsing_size":
        return "is too large; give a smaller whole number"
    if error_type == "missing":
        return "is missing; add it"
    if error_type == "too_short":
        return f"has too few entries; give at least {problem['ctx']['min_length']}"
    if error_type == "too_long":
        return f"has too many entries; give at most {problem['ctx']['max_length']}"
    if wanted := expected(problem):
        return f"must be {wanted}"
    message = message[:1].lower() + message[1:]
    return message.replace("input should", "must").replace("input", "value")


def expected(problem: "ErrorDetails") -> str | None:
    """What type of value there must be, where its type is what is wrong."""
    family, _, rest = problem["type"].partition("_")
    is_kind = rest.startswith(("type", "parsing", "from", "unicode"))
    return _EXPECTED.get(family) if is_kind else None


def shown(value: object) -> str:
    """A value as an error message quotes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
