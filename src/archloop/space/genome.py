"""The genome: what a strategy varies, as frozen plain data, as wide as a spec.

A gene lives where its scope says: global genes hold for every family that has a gene of that name,
family genes for every use of that family, block genes for one block. Widths are not part of a
genome, so one genome gives a spec at ship width and another at proxy width (`space.specs`).
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from archloop.stack.spec import Scalar

Genes = dict[str, Scalar]
Halves = Literal["both", "mixers", "channel_mixer"]
"""Which halves a block has: mixers and a channel mixer, or one of the two alone."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MixerGenes(_Plain):
    """One sequence mixer of a block: its family, the genes that are its own, what it shares.

    Attributes:
        name: of the family.
        genes: block-scoped genes.
        weights_from: index of the earlier block whose mixer in this slot lends its weights.
        state_from: index of the earlier block whose mixer in this slot lends features and state.
    """

    name: str
    genes: Genes = {}
    weights_from: int | None = None
    state_from: int | None = None

    @property
    def source(self) -> int | None:
        """The block it shares from, whichever way."""
        return self.weights_from if self.state_from is None else self.state_from

    def sharing(self, field: str | None, source: int | None) -> "MixerGenes":
        """The same mixer, sharing this and nothing else."""
        changes = {"weights_from": None, "state_from": None}
        return self.model_copy(update=changes | ({field: source} if field else {}))


class ChannelGenes(_Plain):
    """The channel mixer of a block, likewise; it has no state to share.

    Attributes:
        name: of the family.
        genes: block-scoped genes.
        weights_from: index of the earlier block whose channel mixer lends its weights.
    """

    name: str
    genes: Genes = {}
    weights_from: int | None = None

    @property
    def source(self) -> int | None:
        """The block it shares from."""
        return self.weights_from

    def sharing(self, field: str | None, source: int | None) -> "ChannelGenes":
        """The same channel mixer, sharing this and nothing else."""
        assert field in (None, "weights_from"), field
        return self.model_copy(update={"weights_from": source if field else None})


Part = MixerGenes | ChannelGenes
Slot = int | Literal["channel"]
"""A place of a block: the number of a parallel mixer, or its channel mixer."""
CHANNEL: Literal["channel"] = "channel"


class BlockGenes(_Plain):
    """One block.

    Attributes:
        mixers: none, one, or several in parallel.
        channel_mixer: may be absent.
        genes: block-scoped genes of the block itself, such as how outputs are combined.
    """

    mixers: tuple[MixerGenes, ...] = ()
    channel_mixer: ChannelGenes | None = None
    genes: Genes = {}

    @property
    def halves(self) -> Halves:
        """Which of its halves the block has."""
        if self.channel_mixer is None:
            return "mixers"
        return "both" if self.mixers else "channel_mixer"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every place that is taken: mixers in order, then the channel mixer."""
        mixers: tuple[Slot, ...] = tuple(range(len(self.mixers)))
        return mixers if self.channel_mixer is None else (*mixers, CHANNEL)

    def part(self, slot: Slot) -> Part | None:
        """What stands in a place, if anything does."""
        if slot == CHANNEL:
            return self.channel_mixer
        return self.mixers[slot] if slot < len(self.mixers) else None

    def with_part(self, slot: Slot, part: Part) -> "BlockGenes":
        """The block with another mixer or channel mixer in a place that is taken."""
        if slot == CHANNEL:
            return self.model_copy(update={"channel_mixer": part})
        mixers = (*self.mixers[:slot], part, *self.mixers[slot + 1 :])
        return self.model_copy(update={"mixers": mixers})

    def without_sharing(self) -> "BlockGenes":
        """The same block, sharing nothing."""
        channel = self.channel_mixer
        return self.model_copy(
            update={
                "mixers": tuple(mixer.sharing(None, None) for mixer in self.mixers),
                "channel_mixer": None if channel is None else channel.sharing(None, None),
            }
        )


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
        """Mixer names by block, as `StackSpec.layout`."""
        return ["+".join(mixer.name for mixer in block.mixers) or "-" for block in self.blocks]

    @property
    def num_cells(self) -> int:
        """Blocks that vary on their own: those of one period, or all."""
        return self.period or len(self.blocks)

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

    def with_block(self, index: int, block: BlockGenes) -> "Genome":
        """A copy with one block exchanged."""
        blocks = (*self.blocks[:index], block, *self.blocks[index + 1 :])
        return self.model_copy(update={"blocks": blocks})
