"""One colour and one letter pair per mixer, the same in every drawing of a study.

Known families have fixed colours (related families share a hue); a plug-in mixer gets one of the
spare colours by a hash of its name, so that it too keeps its colour between reports.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, count
from types import MappingProxyType

_COLOURS = {
    "short_conv": "#2f9e77",
    "swa": "#7aa6e8",
    "gqa": "#3566c4",
    "mla": "#1d3f8a",
    "gla": "#e0a030",
    "hgrn2": "#c98412",
    "gated_deltanet": "#d9673c",
    "kda": "#b8481f",
    "mamba": "#9a5fb5",
    "mamba2": "#7d3fa0",
    "mamba3": "#5e2a80",
    "s4": "#c45a8f",
    "s4d": "#d77fab",
    "liquid_s4": "#a83a72",
    "s5": "#8c2a5c",
    "rtf": "#e39bc0",
    "cfc": "#5b8a3a",
    "linear_cfc": "#85ad5f",
    "-": "#c9ced6",
}
_SPARE = ("#6b7785", "#4f8a8b", "#a1683a", "#8d8741", "#557a95", "#7a5c61")

_LABELS = {
    "short_conv": "C",
    "gqa": "A",
    "swa": "W",
    "gla": "G",
    "hgrn2": "H",
    "gated_deltanet": "D",
    "kda": "K",
    "mla": "L",
    "mamba": "M1",
    "mamba2": "M2",
    "mamba3": "M3",
    "s4": "S4",
    "s4d": "SD",
    "s5": "S5",
    "rtf": "RT",
    "liquid_s4": "LS",
    "linear_cfc": "LC",
    "cfc": "CF",
    "-": "",
}

_given: ContextVar[Mapping[str, str]] = ContextVar("labels", default=MappingProxyType({}))


def colour(mixer: str) -> str:
    """Hex colour of a mixer's name."""
    return _COLOURS.get(mixer) or _SPARE[zlib.crc32(mixer.encode()) % len(_SPARE)]


def label(mixer: str) -> str:
    """One or two characters that stand for a mixer inside a drawn block.

    Parallel mixers, ``a+b``, have a label each. See `distinct` for mixers of one beginning.
    """
    if "+" in mixer:
        return "+".join(label(part) for part in mixer.split("+"))
    known = _LABELS.get(mixer)
    return _given.get().get(mixer, mixer[:2].upper()) if known is None else known


@contextmanager
def distinct(mixers: Iterable[str]) -> Iterator[None]:
    """Inside, no two of these mixers share a label, also where their names begin alike."""
    token = _given.set(labels(mixers))
    try:
        yield
    finally:
        _given.reset(token)


def labels(mixers: Iterable[str]) -> dict[str, str]:
    """A label for each mixer, all different: two letters of its name, or a letter and a number."""
    found: dict[str, str] = {}
    taken = set(_LABELS.values())
    for mixer in sorted(set(mixers) - _LABELS.keys()):
        letters = [letter for letter in mixer.upper() if letter.isalnum()] or ["?"]
        pairs = [letters[0] + second for second in letters[1:]]
        numbered = (f"{letters[0]}{number}" for number in count(2))
        found[mixer] = next(pair for pair in chain(pairs, numbered) if pair not in taken)
        taken.add(found[mixer])
    return found
