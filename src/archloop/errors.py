"""What the user can mend: the one kind of error that ends a command in a line, not a traceback.

A recipe, spec, corpus, checkpoint or option that cannot work is a `UserError`. A call with wrong
arguments is a plain `ValueError`, and what must never be is an assertion: from the command line
both are our own mistakes, and keep their traceback.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """What the user gave cannot work; the message is one line and says how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def invalid(error: "ValidationError") -> UserError:
    """The first problem that pydantic found in what the user gave: model, field, reason."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in (error.title, *first["loc"]))
    return UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}")
