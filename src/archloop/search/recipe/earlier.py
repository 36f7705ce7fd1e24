"""A recipe as an archloop that had fewer keys would have read it.

A study is told from others by all settings of its recipe. A key that came later, and that the
recipe does not name, must not make another study of one that began before it.
"""

from collections.abc import Mapping
from typing import Any


def known_to(kept: Any, given: Any, said: Any) -> Any:
    """Settings less those that an earlier recipe did not have and that nobody said.

    Args:
        kept: settings that the earlier archloop wrote.
        given: all settings now.
        said: those of them that are not at their default.
    """
    if isinstance(given, dict) and isinstance(kept, Mapping):
        named = said if isinstance(said, dict) else {}
        return {
            key: known_to(kept.get(key), value, named.get(key))
            for key, value in given.items()
            if key in kept or key in named
        }
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        named_too = said if isinstance(said, list) and len(said) == len(given) else given
        return [known_to(*each) for each in zip(kept, given, named_too, strict=True)]
    return given
