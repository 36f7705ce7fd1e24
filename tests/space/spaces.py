"""Spaces that several tests search: every rule, the periodic rule, few enough to count."""

from functools import cache
from typing import Any

from archloop.space.config import SpaceConfig
from archloop.space.opening import open_space
from archloop.space.space import Space
from archloop.testing.spaces import RICH, assert_valid

BUDGET = RICH["budget"]["num_params"]
__all__ = ["BUDGET", "RICH", "assert_valid", "changed", "named"]

PERIODIC = RICH | {"interleaving": {"rule": "periodic", "period": [2, 4], "min_global": 2}}
SMALL: dict[str, Any] = {
    "ship": {"d_model": 256, "vocab_size": 512},
    "proxy": {"d_model": 64, "vocab_size": 256},
    "num_blocks": [1, 2],
    "mixers": {"short_conv": {"kernel": [3, 5]}, "gqa": None},
    "channel_mixers": {"swiglu": {"expansion": 2}},
    "scope": {"kernel": "block"},
}
NAMED = {"rich": RICH, "periodic": PERIODIC, "small": SMALL}


@cache
def named(name: str) -> Space:
    return open_space(SpaceConfig(**NAMED[name]))


def changed(**changes: Any) -> SpaceConfig:
    """The rich space with some sections replaced."""
    return SpaceConfig(**(RICH | changes))
