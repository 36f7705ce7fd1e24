"""Presets: named specs, one YAML file each, and the all-attention twins of those that have one.

A preset file gives the widths, a few block types under one-letter names, and their order as a
pattern. A block type is a block as in a spec; ``mixer:`` stands for one in ``mixers:``. Files in
the folder ``presets`` of a plug-ins folder are presets too.

``<preset>-attention`` is its twin: the same depth, heads and experts, every sequence mixer replaced
by the preset's attention, and the parameters that this frees put into the dense FFNs. A stack
without full attention, without a dense FFN, with nothing but attention, or with side blocks has
none.

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
from archloop.stack.spec import BlockSpec, StackSpec

TWIN_SUFFIX = "-attention"

_FOLDER = Path(__file__).parent


def _files() -> list[Path]:
    """The presets' files: those beside this one, then ``presets/*.yaml`` of plug-in folders."""
    folders = [_FOLDER, *(folder / "presets" for folder in registry.folders())]
    return [file for folder in folders for file in sorted(folder.glob("*.yaml"))]


def _own() -> dict[str, StackSpec]:
    """The presets that have a file."""
    return {file.stem: _read(file) for file in _files()}


def _twins() -> dict[str, StackSpec]:
    """The twins of those that have one."""
    found = {name + TWIN_SUFFIX: _twin_or_none(spec) for name, spec in _own().items()}
    return {name: spec for name, spec in found.items() if spec is not None}


@cache
def _read(file: Path) -> StackSpec:
    try:
        return _parse(file.read_text(encoding="utf-8"))
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"preset {file}: {' '.join(str(error).split())}; correct it") from error


@cache
def _twin_or_none(spec: StackSpec) -> StackSpec | None:
    try:
        return twin(spec)
    except UserError:
        return None


def names() -> list[str]:
    """Sorted names of all presets, and of the twins that can be made."""
    return sorted(_own() | _twins())


def family(name: str) -> dict[str, StackSpec]:
    """The presets of a family, without twins: ``<name>-<size>``, a size beginning with a digit.

    So ``qwen3`` has qwen3-1.7b, and qwen3-next-80b-a3b is of another family.
    """
    stem = f"{name}-"
    found = {each: spec for each, spec in _own().items() if each.startswith(stem)}
    return {each: spec for each, spec in found.items() if each[len(stem)].isdigit()}


def load(name: str) -> StackSpec:
    """The spec of a preset.

    Raises:
        UserError: no such preset; near matches, or a family's presets, are named.
    """
    # A preset with a file needs no costs, and so no torch.
    found = _own().get(name) or _twins().get(name)
    if found is None and (sizes := family(name)):
        raise UserError(f"{name!r} is a family of presets; name one: {', '.join(sizes)}")
    if found is None:
        raise UserError(f"unknown preset {name!r}; {registry.suggest(name, names())}")
    return found


def twin(spec: StackSpec) -> StackSpec:
    """The all-attention counterpart, equal in parameters to within 0.1%.

    Raises:
        UserError: the spec has no full attention to copy, nothing but that already, or no dense
            FFN to widen.
    """
    from archloop.stack import cost

    attention = next(
        (m for _, _, m in cost.mixers(spec) if cost.mixer_config(m).is_global(spec.d_model)), None
    )
    dense = {
        index: block.channel_mixer
        for index, block in enumerate(spec.blocks)
        if block.channel_mixer is not None and block.channel_mixer.name in ("swiglu", "geglu")
    }
    if attention is None or not dense:
        raise UserError("a twin needs a block with full attention and one with a dense FFN")
    if any(block.side for block in spec.blocks):
        raise UserError("a stack with side blocks has no twin: their attention reads another width")
    plain = attention.model_copy(update={"weights_from": None, "state_from": None})
    if all(block.mixers == (plain,) for block in spec.blocks):
        raise UserError("a stack of full attention alone is its own twin")
    blocks = [b.model_copy(update={"mixers": (plain,) if b.mixers else ()}) for b in spec.blocks]
    missing = cost.num_params(spec) - cost.num_params(spec.replace(blocks=blocks))
    # One with the weights of another is widened like it and has no parameters of its own.
    num_own = sum(channel.weights_from is None for channel in dense.values())
    extra = missing / (3 * spec.d_model * num_own) / spec.d_model
    for index in dense:
        blocks[index] = _widened(blocks[index], extra)
    return spec.replace(blocks=blocks)


def _widened(block: BlockSpec, extra: float) -> BlockSpec:
    from archloop.stack.cost import channel_config

    channel = block.channel_mixer
    assert channel is not None
    settings: Any = channel_config(channel)
    expansion = settings.expansion
    config = {**channel.config, "expansion": expansion + extra}
    widened = channel.model_copy(update={"config": config})
    return block.model_copy(update={"channel_mixer": widened})


def _parse(text: str) -> StackSpec:
    fields: dict[str, Any] = yaml.safe_load(text)
    block_types = {
        letter: BlockSpec.model_validate(
            {
                ("mixers" if key == "mixer" else key): [value] if key == "mixer" else value
                for key, value in block_type.items()
            }
        )
        for letter, block_type in fields.pop("block_types").items()
    }
    blocks = tuple(block_types[letter] for letter in fields.pop("pattern"))
    return StackSpec(blocks=blocks, **fields)
