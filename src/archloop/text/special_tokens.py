"""Ids of the tokens that begin, end and fill up texts: what belongs to weights beside numbers.

A model says that it has finished by one of its ending tokens, so the ids travel with its decoder,
from the files that it was loaded from to those that it is saved to.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a model; what is not known is None or empty.

    Attributes:
        bos: begins a text.
        eos: any of these ends a reply.
        pad: fills up shorter rows of a batch.
    """

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
