"""The stack spec: a complete, hashable, buildable description of a decoder, as plain data.

Nothing here imports torch: a spec can be read, compared and stored on a machine that never builds
it. What a mixer's settings may be is checked where the mixer is known, in `stack.cost` and
`stack.decoder`; what holds between blocks is checked here.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from archloop.errors import invalid

Scalar = bool | int | float | str | None
Combine = Literal["sum", "mean", "normed_mean"]
"""Ways to make one output of those of parallel mixers."""


def _one_spelling(settings: dict[str, Scalar]) -> dict[str, Scalar]:
    """2.0 and 2 are one setting, so that equal specs have equal text and one digest."""
    return {
        name: int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        else value
        for name, value in settings.items()
    }


Settings = Annotated[dict[str, Scalar], AfterValidator(_one_spelling)]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MixerSpec(_Plain):
    """One sequence mixer of a block: a plug-in's name, its settings and what it shares.

    Attributes:
        input_multiplier: factor on the normed input of this mixer alone.
        multiplier: factor on its output, before branches are combined (Falcon-H1 has both).
        weights_from: index of an earlier block whose mixer in the same slot lends its weights.
        state_from: index of an earlier block whose mixer in the same slot lends its features and
            state (K and V, or k, v and gates); this one keeps queries and output of its own.
    """

    name: str
    config: Settings = {}
    input_multiplier: float = 1.0
    multiplier: float = 1.0
    weights_from: int | None = None
    state_from: int | None = None


class ChannelMixerSpec(_Plain):
    """The channel mixer of a block: a plug-in's name, its settings and what it shares.

    Attributes:
        multiplier: factor on its output.
        weights_from: index of an earlier block whose channel mixer lends its weights (Zamba2).
    """

    name: str
    config: Settings = {}
    multiplier: float = 1.0
    weights_from: int | None = None


class BlockSpec(_Plain):
    """One block: ``x += m * mixers(norm x)``, then ``x += m * channel_mixer(norm x)``.

    A side block (Zamba, arXiv 2405.16712) reads the stream and leaves it as it is:
    ``y = m * mixers(norm x)``, then ``y = m * channel_mixer(norm y)``, and ``W y``, with a matrix
    of its own, is added to what the next block's first norm reads, and to nothing else.

    Attributes:
        mixers: none, one, or several in parallel on the same normed input.
        combine: what becomes of parallel mixers' outputs: their sum, their mean, or the mean of
            their outputs each through an RMS norm of its own (Hymba). Of one mixer: its output.
        channel_mixer: may be absent.
        post_norms: also normalise each branch's output before it is added.
        residual_multiplier: m above.
        side: it is a side block.
        norms_from: index of an earlier block whose norms it has (Zamba's side blocks repeat).
    """

    mixers: tuple[MixerSpec, ...] = ()
    combine: Combine = "sum"
    channel_mixer: ChannelMixerSpec | None = None
    post_norms: bool = False
    residual_multiplier: float = 1.0
    side: bool = False
    norms_from: int | None = None


class StackSpec(_Plain):
    """A decoder: embedding, blocks, final norm, head.

    Attributes:
        version: of this format.
        norm_offset: the blocks' norms and the last one multiply by 1 + w instead of w (Gemma).
        embedding_multiplier: factor on embeddings.
        logits_divisor: divides the logits.
        max_context: longest context the model is meant for; None when not stated.
    """

    version: Literal[1] = 1
    d_model: Annotated[int, Field(ge=1)]
    vocab_size: Annotated[int, Field(ge=1)]
    blocks: tuple[BlockSpec, ...]
    tie_embeddings: bool = True
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    norm_offset: bool = False
    embedding_multiplier: float = 1.0
    logits_divisor: Annotated[float, Field(gt=0)] = 1.0
    max_context: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check_sharing(self) -> "StackSpec":
        for index, block in enumerate(self.blocks):
            for slot, mixer in enumerate(block.mixers):
                for field in ("weights_from", "state_from"):
                    self._check_source(index, slot, mixer, field)
                if mixer.weights_from is not None and mixer.state_from is not None:
                    raise ValueError(
                        f"blocks[{index}].mixers[{slot}]: weights_from and state_from exclude "
                        "each other; a consumer of state has no such weights to take"
                    )
            self._check_channel_source(index, block.channel_mixer)
            self._check_norms_source(index, block)
        return self

    def _check_norms_source(self, index: int, block: BlockSpec) -> None:
        if block.norms_from is None:
            return
        where = f"blocks[{index}].norms_from={block.norms_from}"
        _check_earlier(where, block.norms_from, index)
        source = self.blocks[block.norms_from]
        if source.norms_from is not None:
            raise ValueError(f"{where}: the source itself shares; name the block it shares from")
        if _norms(source) != _norms(block):
            raise ValueError(f"{where}: block {block.norms_from} has other norms")

    def _check_channel_source(self, index: int, channel: ChannelMixerSpec | None) -> None:
        if channel is None or channel.weights_from is None:
            return
        where = f"blocks[{index}].channel_mixer.weights_from={channel.weights_from}"
        _check_earlier(where, channel.weights_from, index)
        source = self.blocks[channel.weights_from].channel_mixer
        if source is None:
            raise ValueError(f"{where}: block {channel.weights_from} has no channel mixer")
        _check_lender(where, channel, source, source.weights_from is not None)

    def _check_source(self, index: int, slot: int, mixer: MixerSpec, field: str) -> None:
        source_index = getattr(mixer, field)
        if source_index is None:
            return
        where = f"blocks[{index}].mixers[{slot}].{field}={source_index}"
        _check_earlier(where, source_index, index)
        slots = self.blocks[source_index].mixers
        if slot >= len(slots):
            raise ValueError(f"{where}: block {source_index} has no mixer in slot {slot}")
        source = slots[slot]
        shares = source.weights_from is not None or source.state_from is not None
        _check_lender(where, mixer, source, shares)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def layout(self) -> list[str]:
        """Mixer names by block; parallel mixers are joined with ``+``, no mixer is ``-``."""
        return ["+".join(m.name for m in block.mixers) or "-" for block in self.blocks]

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        data = self.model_dump(mode="json")
        # Left out where it says nothing, so that specs from before it keep their digests.
        if not data["norm_offset"]:
            del data["norm_offset"]
        for block in data["blocks"]:
            if not block["side"]:
                del block["side"]
            if block["norms_from"] is None:
                del block["norms_from"]
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "StackSpec":
        """Parse and validate.

        Raises:
            UserError: not a valid spec; names the field.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise invalid(error) from error

    @property
    def digest(self) -> str:
        """Short hash of the canonical JSON, an identity for files and caches."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        # In Python True equals 1, and 0.0 equals -0.0; as text, and in files, they differ.
        return isinstance(other, StackSpec) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def replace(self, **changes: Any) -> "StackSpec":
        """A validated copy with other field values."""
        return StackSpec.model_validate({**self.model_dump(), **changes})


def _norms(block: BlockSpec) -> tuple[object, ...]:
    """What decides how many norms a block has; their widths are compared where mixers are known."""
    normed_mean = len(block.mixers) if block.combine == "normed_mean" else 0
    return bool(block.mixers), block.channel_mixer is not None, block.post_norms, normed_mean


def _check_earlier(where: str, source: int, index: int) -> None:
    if not 0 <= source < index:
        allowed = f"0 to {index - 1}" if index else "none, as no block comes before this one"
        raise ValueError(f"{where}: must be an earlier block; allowed: {allowed}")


def _check_lender(
    where: str,
    mine: MixerSpec | ChannelMixerSpec,
    source: MixerSpec | ChannelMixerSpec,
    shares: bool,
) -> None:
    if (source.name, source.config) != (mine.name, mine.config):
        raise ValueError(
            f"{where}: the source is {source.name} {source.config}, "
            f"this is {mine.name} {mine.config}; they must be equal"
        )
    if shares:
        raise ValueError(f"{where}: the source itself shares; name the block it shares from")
