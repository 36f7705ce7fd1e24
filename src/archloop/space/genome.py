"""The genome: what a strategy varies, as frozen plain data.

A gene lives where its scope says: global genes hold for every family that has a gene of that name,
family genes for every block of that family, block genes for one block. Widths are not part of a
genome, so one genome gives a spec at ship width and another at proxy width (`space.space`).
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from archloop.stack.spec import Scalar

Genes = dict[str, Scalar]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockGenes(_Plain):
    """One block: its mixers, the genes that are its own, and what it shares.

    Attributes:
        mixer: name of the sequence mixer.
        genes: block-scoped genes of the mixer.
        channel_mixer: name of the channel mixer.
        channel_genes: block-scoped genes of the channel mixer.
        weights_from: index of the earlier block that lends its mixer's weights.
        state_from: index of the earlier block that lends its mixer's features and state.
    """

    mixer: str
    genes: Genes = {}
    channel_mixer: str
    channel_genes: Genes = {}
    weights_from: int | None = None
    state_from: int | None = None

    @property
    def source(self) -> int | None:
        """The block it shares from, whichever way."""
        return self.weights_from if self.state_from is None else self.state_from

    def unshared(self) -> "BlockGenes":
        """The same block, sharing nothing."""
        return self.model_copy(update={"weights_from": None, "state_from": None})


class Genome(_Plain):
    """Global genes, family genes and blocks; equal genomes hash alike.

    Attributes:
        global_genes: gene name -> value.
        family_genes: family name -> gene name -> value, of every family of the space that has any.
        blocks: from the embedding upwards.
        period: in a periodic space, block i is like block i - period; otherwise None.
    """

    global_genes: Genes = {}
    family_genes: dict[str, Genes] = {}
    blocks: Annotated[tuple[BlockGenes, ...], Field(min_length=1)]
    period: int | None = None

    @property
    def layout(self) -> list[str]:
        """Mixer names by block."""
        return [block.mixer for block in self.blocks]

    def to_json(self) -> str:
        """Canonical JSON: equal genomes give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Genome":
        """Parse and validate.

        Raises:
            ValueError: not a genome; names the field.
        """
        return cls.model_validate_json(text)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def replace(self, **changes: Any) -> "Genome":
        """A copy with other field values, which the caller knows to be of the right types."""
        return self.model_copy(update=changes)
