"""Numbers as people write them on a command line: 350M, 2B, lists divided by commas."""

import math
import re

from archloop.errors import UserError, shown

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
    number = 0.0 if found is None else float(found[1]) * _SCALES[found[2]]
    # Hundreds of digits are more than a float holds.
    if not math.isfinite(number) or round(number) < 1:
        raise UserError(f"{option} {shown(text)} is no number of {what} such as 5000, 100M or 2B")
    return round(number)
