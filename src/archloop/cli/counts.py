"""Numbers as people write them on a command line: 350M, 2B, lists divided by commas."""

import re

from archloop.errors import UserError

_SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def count(option: str, text: str, what: str) -> int:
    """A number above 0, such as ``350M``.

    Args:
        option: its name, for messages.
        text: as given.
        what: what is counted, likewise.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.upper())
    number = 0 if found is None else round(float(found[1]) * _SCALES[found[2]])
    if number < 1:
        raise UserError(f"{option} {text!r} is no number of {what} such as 5000, 100M or 2B")
    return number
