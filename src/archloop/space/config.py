"""The `space:` section of a recipe: which stacks a search may try, as plain data.

Only shapes are checked here; `space.families` checks names and values against the plug-ins, and
`space.opening` whether any spec can meet it all.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from archloop.space.genome import Halves
from archloop.stack.spec import Scalar

Scope = Literal["global", "family", "block"]
BLOCK, STACK = "block", "stack"
"""Families of settings that belong to a block or to the whole stack, not to a mixer."""
MAX_GRID = 8
"""Values of a budget's free gene: few, so that blocks repeat and cached artifacts are reused."""
MAX_BLOCKS = 1024
"""Deeper stacks would take minutes only to be counted."""
MAX_MIXERS = 4
"""Mixers side by side in one block."""


def _one_or_many(value: object) -> object:
    return value if isinstance(value, (list, tuple)) else [value]


Width = Annotated[int, Field(ge=1, le=2**17)]
Vocabulary = Annotated[int, Field(ge=1, le=2**24)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ByScale(_Section):
    """One value of a gene that is another number at proxy width, such as a window.

    A window of 256 that is profiled at 32,768 tokens has its like in a window of 32 that is
    trained on 256: ``window: {ship: 256, proxy: 32}``.
    """

    ship: Scalar
    proxy: Scalar


FamilyGenes = dict[str, Scalar | ByScale | list[Scalar | ByScale]]


class ShipScale(_Section):
    """The width that is profiled and shipped.

    Attributes:
        d_model: model width.
        vocab_size: tokens of its vocabulary.
        tie_embeddings: one matrix is embedding and head.
    """

    d_model: Width
    vocab_size: Vocabulary
    tie_embeddings: bool = True


class ProxyScale(_Section):
    """The width that is trained; its vocabulary may be known only once a tokenizer is.

    Attributes:
        d_model: model width.
        vocab_size: of the text and the tasks; null: as many as these need.
    """

    d_model: Width
    vocab_size: Vocabulary | None = None


class Structure(_Section):
    """What blocks may consist of.

    Attributes:
        halves: mixers and a channel mixer (``both``), or one of the two alone, as in stacks that
            alternate single-branch layers.
        num_mixers: mixers side by side in a block that has any.
    """

    halves: Annotated[tuple[Halves, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = (
        "both",
    )
    num_mixers: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MAX_MIXERS)], ...],
        BeforeValidator(_one_or_many),
        Field(min_length=1),
    ] = (1,)

    @model_validator(mode="after")
    def _check_mixers(self) -> "Structure":
        if set(self.halves) == {"channel_mixer"}:
            raise ValueError("halves=[channel_mixer] leaves no mixer; add both or mixers")
        return self


class Interleaving(_Section):
    """Rules on the order of mixers.

    Attributes:
        rule: free, or periodic, where the first `period` blocks repeat.
        period: allowed periods, inclusive; for the periodic rule.
        min_global: at least so many blocks with a mixer that reaches every earlier token.
    """

    rule: Literal["free", "periodic"] = "free"
    period: tuple[int, int] = (2, 6)
    min_global: Annotated[int, Field(ge=0)] = 0

    @field_validator("period")
    @classmethod
    def _check_period(cls, period: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= period[0] <= period[1]:
            raise ValueError(f"period={list(period)} must be [shortest, longest], at least 1")
        return period


class Sharing(_Section):
    """What blocks may take from an earlier block of the same family and settings.

    Attributes:
        weights: of a mixer.
        state: features and state of a mixer.
        channel_weights: of a channel mixer.
    """

    weights: bool = False
    state: bool = False
    channel_weights: bool = False


class ParamBudget(_Section):
    """A number of parameters at ship scale, met by moving one gene of a channel mixer.

    Attributes:
        num_params: the target.
        tolerance: largest relative distance from it.
        free: ``family.gene``, whose listed values are the grid (at most 8).
        trained: proxies meet a budget too, with a setting of the free gene of their own. Without
            it stacks that are equal at ship width may differ by a quarter at proxy width, and what
            is called a better mixer may be a larger proxy. The budget is the ship's, embeddings
            aside, times the square of the ratio of widths; where no setting meets it the nearest
            is taken.
        uniform: every block has the same value of the free gene, as formats need that know one
            width of feed-forwards; the tolerance then has to be wider.
    """

    num_params: Annotated[int, Field(ge=1)]
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.01
    free: str = "swiglu.expansion"
    trained: bool = False
    uniform: bool = False


class SpaceConfig(_Section):
    """Which stacks a search may try.

    Attributes:
        ship: what is measured.
        proxy: what is trained to rank stacks.
        num_blocks: one depth or several.
        mixers: family -> gene -> values to search, or one fixed value.
        channel_mixers: likewise.
        structure: halves of a block, and mixers side by side.
        block: settings of blocks (`combine`, `post_norms`, `residual_multiplier`, `side`),
            likewise.
        stack: settings of the stack (`embedding_multiplier`, `logits_divisor`, `norm_eps`,
            `norm_offset`), likewise.
        scope: where a gene varies, by ``gene`` or ``family.gene``; family unless said otherwise.
        budget: None leaves the number of parameters to the genes.
        exportable_to: formats that can say every stack that is tried: ``gguf``, ``transformers``.
    """

    ship: ShipScale
    proxy: ProxyScale
    num_blocks: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MAX_BLOCKS)], ...],
        BeforeValidator(_one_or_many),
        Field(min_length=1),
    ]
    mixers: Annotated[dict[str, FamilyGenes], Field(min_length=1)]
    channel_mixers: dict[str, FamilyGenes]
    structure: Structure = Structure()
    block: FamilyGenes = {}
    stack: FamilyGenes = {}
    scope: dict[str, Scope] = {}
    interleaving: Interleaving = Interleaving()
    sharing: Sharing = Sharing()
    budget: ParamBudget | None = None
    exportable_to: Annotated[
        tuple[Literal["gguf", "transformers"], ...], BeforeValidator(_one_or_many)
    ] = ()

    @field_validator("num_blocks")
    @classmethod
    def _sort_depths(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(depths)))

    @field_validator("mixers", "channel_mixers", mode="before")
    @classmethod
    def _bare_names(cls, families: object) -> object:
        """``gqa:`` with nothing after it, or a list of names, means no genes."""
        if isinstance(families, (list, tuple)):
            families = {str(name): {} for name in families}
        if isinstance(families, dict):
            return {name: {} if genes is None else genes for name, genes in families.items()}
        return families

    @model_validator(mode="after")
    def _check_names(self) -> "SpaceConfig":
        twice = sorted(set(self.mixers) & set(self.channel_mixers))
        if twice:
            raise ValueError(f"{twice[0]} is listed under both mixers and channel_mixers")
        for name in (BLOCK, STACK):
            if name in self.mixers or name in self.channel_mixers:
                raise ValueError(f"no family may be called {name!r}, which has a section here")
        if not self.channel_mixers and set(self.structure.halves) != {"mixers"}:
            raise ValueError("channel_mixers is empty; name one, or let structure.halves be mixers")
        rules = self.interleaving
        if rules.min_global > self.num_blocks[0]:
            raise ValueError(
                f"interleaving.min_global={rules.min_global} exceeds "
                f"num_blocks={self.num_blocks[0]}; lower it or allow more blocks only"
            )
        if rules.rule == "periodic" and rules.period[0] > self.num_blocks[0]:
            raise ValueError(
                f"interleaving.period starts at {rules.period[0]}, above "
                f"num_blocks={self.num_blocks[0]}; a period must fit the stack"
            )
        return self


def listed(value: Any) -> list[Scalar | ByScale]:
    """The values that a recipe gives for a gene, one or many."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
