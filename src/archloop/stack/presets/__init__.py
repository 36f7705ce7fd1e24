"""Presets: named specs, one YAML file each, and the all-attention twin of every one.

A preset file gives the widths, a few kinds of block under one-letter names, and their order as a
pattern. ``<preset>-attention`` is its twin: the same depth, heads and experts, every sequence mixer
replaced by the preset's attention, and the parameters that this frees put into the dense FFNs.

    >>> from archloop.stack import presets
    >>> presets.load("lfm2-350m").num_blocks
    16
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from archloop import registry
from archloop.errors import UserError
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

TWIN_SUFFIX = "-attention"

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Sorted names of all presets and their twins."""
    files = [file.stem for file in _FOLDER.glob("*.yaml")]
    return sorted(files + [name + TWIN_SUFFIX for name in files])


@cache
def load(name: str) -> StackSpec:
    """The spec of a preset.

    Raises:
        UserError: no such preset; near matches are named.
    """
    if name not in names():
        raise UserError(f"unknown preset {name!r}; {registry.suggest(name, names())}")
    if name.endswith(TWIN_SUFFIX):
        return twin(load(name.removesuffix(TWIN_SUFFIX)))
    return _parse((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def twin(spec: StackSpec) -> StackSpec:
    """The all-attention counterpart, equal in parameters to within 0.1%.

    Raises:
        UserError: the spec has no full attention to copy, or no dense FFN to widen.
    """
    from archloop.stack import cost

    attention = next(
        (m for _, _, m in cost.mixers(spec) if cost.mixer_config(m).is_global(spec.d_model)), None
    )
    dense = [
        index
        for index, block in enumerate(spec.blocks)
        if block.channel_mixer is not None and block.channel_mixer.name == "swiglu"
    ]
    if attention is None or not dense:
        raise UserError("a twin needs a block with full attention and one with a dense FFN")
    plain = MixerSpec(name=attention.name, config=attention.config)
    blocks = [b.model_copy(update={"mixers": (plain,) if b.mixers else ()}) for b in spec.blocks]
    missing = cost.num_params(spec) - cost.num_params(spec.replace(blocks=blocks))
    extra = missing / (3 * spec.d_model * len(dense)) / spec.d_model
    for index in dense:
        blocks[index] = _widened(blocks[index], extra)
    return spec.replace(blocks=blocks)


def _widened(block: BlockSpec, extra: float) -> BlockSpec:
    channel = block.channel_mixer
    assert channel is not None
    expansion = channel.config["expansion"]
    assert isinstance(expansion, int | float)
    config = {**channel.config, "expansion": expansion + extra}
    return block.model_copy(
        update={"channel_mixer": ChannelMixerSpec(name=channel.name, config=config)}
    )


def _parse(text: str) -> StackSpec:
    fields: dict[str, Any] = yaml.safe_load(text)
    kinds = {
        letter: BlockSpec.model_validate(
            {"mixers": [kind["mixer"]], "channel_mixer": kind["channel_mixer"]}
        )
        for letter, kind in fields.pop("kinds").items()
    }
    blocks = tuple(kinds[letter] for letter in fields.pop("pattern"))
    return StackSpec(blocks=blocks, **fields)
