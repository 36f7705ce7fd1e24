"""How a study ends other than well."""

from archloop.errors import UserError


class StudyError(RuntimeError):
    """The study cannot go on; the message is one line, and what is finished stays finished."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DiskFullError(StudyError, UserError):
    """No space is left; what is finished is whole, and the same command goes on."""


class NoFeasibleTrial(StudyError):  # noqa: N818  (how a search ended, not a fault)
    """Every trial broke a budget or failed; the message names the nearest."""
