"""What a checkpoint layout is: a family's `config.json` and tensors, to and from a stack spec.

A new layout is one file in `checkpoints/layouts/` with one subclass. It reads a configuration into
a spec, writes a draft of one from a spec, and lists its tensors as pieces. Whether a draft says all
that a spec is, is settled here: it is read again and compared, so nothing is left out silently.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

from archloop.checkpoints.keys import Keys
from archloop.checkpoints.pieces import Piece
from archloop.errors import UserError
from archloop.stack import cost
from archloop.stack.cost import channel_config, mixer_config
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

_TRAINING_ONLY = frozenset({"bias_update_rate"})
"""Settings that no configuration of a model says, since they act in training."""


class UnsayableError(UserError):
    """A layout has no words for a part of a spec."""


class Layout(ABC):
    """A family of checkpoints.

    Attributes:
        name: the plug-in's name, set by the registry.
        model_types: values of ``model_type`` in its `config.json`, and the architecture of each.
        variants: ways to cut the tensors, the one to write first.
        examples: small configurations, which between them say all that the family can; tests
            build, save and load each, and compare with transformers.
        example_std: standard deviation of the weights that tests draw for the examples. Each part
            of a stack multiplies rounding errors by some factor that grows with it; where they are
            compared to 1e-5 over many parts without residuals, it must be smaller.
        embedding, head: the checkpoint's names of the tensors that a tied model has one of.
        keeps_float32: ends of names of tensors that are float32 in a model of any dtype, so that a
            checkpoint may store them so beside others.
        unbuilt: beginnings of names of tensors that a checkpoint may hold beside the model's, of
            parts that neither we nor transformers build.
    """

    name: ClassVar[str] = ""
    model_types: ClassVar[Mapping[str, str]]
    variants: ClassVar[tuple[str, ...]] = ("plain",)
    examples: ClassVar[tuple[Mapping[str, Any], ...]]
    example_std: ClassVar[float] = 0.3
    embedding: ClassVar[str] = "model.embed_tokens.weight"
    head: ClassVar[str] = "lm_head.weight"
    keeps_float32: ClassVar[tuple[str, ...]] = ()
    unbuilt: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def to_spec(self, keys: Keys) -> StackSpec:
        """The spec that a configuration describes.

        Raises:
            UserError: values that contradict each other or cannot be built; names the key.
        """

    @abstractmethod
    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        """A configuration, as if every block were like the first of its type.

        Raises:
            UnsayableError: the spec has a part that the family does not know at all.
        """

    @abstractmethod
    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        """The tensors of a checkpoint of the spec."""

    def ends(self, spec: StackSpec, norm: str = "model.norm.weight") -> Iterator[Piece]:
        """What stands before and after all blocks: the embedding, the last norm, an own head."""
        width = spec.d_model
        yield Piece(self.embedding, "embedding.weight", (spec.vocab_size, width))
        yield Piece(norm, "norm.weight", (width,))
        if not spec.tie_embeddings:
            yield Piece(self.head, "head.weight", (spec.vocab_size, width))

    def variant(self, stored: Collection[str]) -> str:
        """Which variant the names of stored tensors belong to."""
        return self.variants[0]

    def read(self, config: Mapping[str, Any]) -> StackSpec:
        """The spec of a `config.json`, every key of which is understood.

        Raises:
            UserError: another family's, or as `to_spec`, or a key that could change results.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in self.model_types:
            raise UserError(f"model_type={model_type!r} is not of {', '.join(self.model_types)}")
        expected = [self.model_types[model_type]]
        if (names := config.get("architectures") or expected) != expected:
            raise UserError(
                f"architectures={names!r} does not fit model_type={model_type!r}; "
                f"expected {expected!r}"
            )
        keys = Keys(config, model_type)
        spec = self.to_spec(keys)
        keys.finish()
        cost.check(spec)
        return spec

    def write(self, spec: StackSpec) -> dict[str, Any]:
        """The `config.json` of a spec, without token ids and dtype.

        Raises:
            UnsayableError: it would say something else than the spec; names block and setting.
        """
        config, obstacles = self.draft(spec)
        if obstacles:
            raise UnsayableError(obstacles[0])
        return config

    def draft(self, spec: StackSpec) -> tuple[dict[str, Any], list[str]]:
        """The nearest `config.json` that the family has, and all that it says otherwise.

        Returns:
            The configuration, empty where the family has none, and a phrase for each obstacle:
            the first is the one that `write` tells.
        """
        try:
            config = self.from_spec(spec)
            config["architectures"] = [self.model_types[config["model_type"]]]
            again = self.read(config)
        except ValueError as error:
            return {}, [str(error)]
        return config, list(_differences(spec, again))

    def mixers(self) -> set[str]:
        """Names of the mixers that the family has, by its `examples`."""
        blocks = [block for each in self.examples for block in self.read(each).blocks]
        return {mixer.name for block in blocks for mixer in block.mixers}

    def num_foreign(self, spec: StackSpec) -> int:
        """Blocks whose parts are none that a block of the family has, by its `examples`."""
        known = {_parts(block) for each in self.examples for block in self.read(each).blocks}
        return sum(_parts(block) not in known for block in spec.blocks)


def first_mixer(spec: StackSpec, *names: str) -> MixerSpec | None:
    """The first mixer of one of these names."""
    return next((mixer for _, _, mixer in cost.mixers(spec) if mixer.name in names), None)


def only_mixer(block: BlockSpec, index: int, *names: str) -> MixerSpec:
    """The one mixer of a block.

    Raises:
        UnsayableError: there are none or several, or it is none of `names`.
    """
    if len(block.mixers) != 1 or block.channel_mixer is None:
        raise UnsayableError(f"block {index} must have one mixer and a channel mixer")
    if block.mixers[0].name not in names:
        raise UnsayableError(f"block {index} has the mixer {block.mixers[0].name}")
    return block.mixers[0]


def layer_types(spec: StackSpec, layer_types: Mapping[str, str], channel: str) -> list[str]:
    """What a family calls each block, where its mixer alone tells.

    Args:
        spec: the stack.
        layer_types: the family's word, by the mixer's name.
        channel: the channel mixer that every block must have.

    Raises:
        UnsayableError: a block has other parts than these; there is no block.
    """
    found = []
    for index, block in enumerate(spec.blocks):
        found.append(layer_types[only_mixer(block, index, *layer_types).name])
        assert block.channel_mixer is not None
        if block.channel_mixer.name != channel:
            raise UnsayableError(f"block {index} has {block.channel_mixer.name}")
    if not found:
        raise UnsayableError("the stack has no block")
    return found


def sizes_of(mixer: MixerSpec | ChannelMixerSpec, d_model: int) -> dict[str, Any]:
    """Settings of a sequence or channel mixer, defaults filled in and sizes worked out."""
    config = mixer_config(mixer) if isinstance(mixer, MixerSpec) else channel_config(mixer)
    return {**config.model_dump(), **config.sizes(d_model)}


def _parts(block: BlockSpec) -> tuple[tuple[str, ...], str | None]:
    """What a block consists of, by name."""
    channel = None if block.channel_mixer is None else block.channel_mixer.name
    return tuple(mixer.name for mixer in block.mixers), channel


def _differences(spec: StackSpec, again: StackSpec) -> Iterator[str]:
    """In what a configuration that is read again says another stack, in phrases."""
    for index, (want, have) in enumerate(zip(spec.blocks, again.blocks, strict=True)):
        wanted, said = _settled(want, spec.d_model), _settled(have, spec.d_model)
        for key in dict.fromkeys([*wanted, *said]):
            if wanted.get(key) != said.get(key):
                yield (
                    f"block {index} has {key}={wanted.get(key)!r}, its configuration can only "
                    f"say {said.get(key)!r} there"
                )
    for field in sorted(StackSpec.model_fields.keys() - {"version", "blocks", "max_context"}):
        if getattr(spec, field) != getattr(again, field):
            yield f"{field}={getattr(spec, field)!r} cannot be said"


def _settled(block: BlockSpec, width: int) -> dict[str, Any]:
    """A block as flat settings, defaults filled in and sizes worked out."""
    found: dict[str, Any] = block.model_dump(exclude={"mixers", "channel_mixer"})
    if len(block.mixers) < 2:
        found.pop("combine", None)
    for slot, mixer in enumerate(block.mixers):
        where = f"mixers[{slot}]."
        values = mixer.model_dump(exclude={"config"})
        values |= dict(mixer_config(mixer).signature(width))
        if "head_dim" in values and values.get("scale", 0) is None:
            # Attention scales scores so where nothing else is said; some families say it always.
            values["scale"] = values["head_dim"] ** -0.5
        found |= {where + key: value for key, value in values.items()}
    if block.channel_mixer is not None:
        values = block.channel_mixer.model_dump(exclude={"config"})
        values |= dict(channel_config(block.channel_mixer).signature(width))
        found |= {f"channel_mixer.{k}": v for k, v in values.items() if k not in _TRAINING_ONLY}
    return found
