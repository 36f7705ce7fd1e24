"""Parts that families share: rotary settings, projections, gated feed-forwards."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from archloop.checkpoints.keys import Keys
from archloop.checkpoints.layouts.base import UnsayableError, sizes_of
from archloop.checkpoints.pieces import Piece, rows
from archloop.errors import UserError
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_LLAMA3 = {
    "rope_trained_context": "original_max_position_embeddings",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
}


def layer_types_of(
    listed: Any, num_layers: int, known: Collection[str], key: str = "layer_types"
) -> list[str]:
    """What a configuration lists as each layer's type.

    Args:
        listed: the key's value.
        num_layers: how many the model has.
        known: types that are built.
        key: its name.

    Raises:
        UserError: no list, one of another length, or with an unknown type.
    """
    if not isinstance(listed, list) or len(listed) != num_layers:
        raise UserError(f"{key} must list num_hidden_layers={num_layers} layers")
    for layer_type in listed:
        if layer_type not in tuple(known):
            raise UserError(f"{key} has {layer_type!r}; known: {', '.join(known)}")
    return listed


def heads(
    keys: Keys, width: int, *, default_kv_heads: int | None = None, head_dim: int | None = None
) -> dict[str, Scalar]:
    """Settings of grouped queries: ``head_dim``, ``queries_per_kv`` and where needed ``num_heads``.

    Raises:
        UserError: heads that do not divide each other.
    """
    num = keys.number("num_attention_heads")
    num_kv = keys.number("num_key_value_heads", default_kv_heads or num)
    if num % num_kv:
        raise UserError(f"num_key_value_heads={num_kv} does not divide num_attention_heads={num}")
    head_dim = keys.number("head_dim", head_dim or width // num)
    settings: dict[str, Scalar] = {"head_dim": head_dim, "queries_per_kv": num // num_kv}
    if head_dim * num != width:
        settings["num_heads"] = num
    return settings


def head_keys(mixer: MixerSpec, width: int) -> dict[str, Any]:
    """The keys that `heads` reads."""
    sizes = sizes_of(mixer, width)
    num, head_dim = sizes["num_heads"], sizes["head_dim"]
    said = {"num_attention_heads": num, "num_key_value_heads": sizes["num_kv_heads"]}
    return said if num * head_dim == width else said | {"head_dim": head_dim}


def rope(
    keys: Keys,
    theta: float,
    rope_types: Collection[str] = ("default",),
    *,
    turning: float | None = None,
    inert: Collection[str] = (),
) -> dict[str, Scalar]:
    """Settings of RoPE, which may be said in several places that must agree.

    Args:
        keys: of the configuration; ``rope_theta``, ``rope_parameters`` and ``rope_scaling``.
        theta: default of the base.
        rope_types: values of ``rope_type`` that are built.
        turning: default share of a head's channels that turn, the first ones, with frequencies
            that run over these; None: all turn.
        inert: names beside the base that change nothing for text.

    Raises:
        UserError: they contradict each other, or another type.
    """
    said = {key: keys.real(key) for key in ("rope_theta", "theta") if key in keys}
    settings: dict[str, Scalar] = {}
    if turning is None:
        keys.fixed("partial_rotary_factor", 1.0)
    else:
        turning = keys.real("partial_rotary_factor", turning)
    for key in ("rope_parameters", "rope_scaling"):
        with keys.inside(key) as inner:
            inner.ignore(" ".join(f"{key}.{name}" for name in inert))
            if f"{key}.rope_theta" in inner:
                said[f"{key}.rope_theta"] = inner.real(f"{key}.rope_theta")
            share = f"{key}.partial_rotary_factor"
            if turning is not None and share in inner:
                turning = inner.real(share)
            settings |= rope_type_settings(inner, f"{key}.", rope_types, turning)
    if turning is not None and turning != 1:
        settings |= {"rope_fraction": turning, "rope_over": "turning"}
    bases = list(said.values()) or [theta]
    if any(base != bases[0] for base in bases):
        raise UserError(f"the rotary base is said twice, differently: {said}")
    if bases[0] <= 1:
        raise UserError(f"rope_theta={bases[0]!r} must be a number above 1")
    return {"rope_theta": bases[0], **settings}


def rope_type_settings(
    inner: Keys, stem: str, rope_types: Collection[str], turning: float | None = None
) -> dict[str, Scalar]:
    """What a ``rope_type`` and its factors say beside the base, whose keys begin with `stem`.

    The share that turns may be said beside them if it has a default, `turning`.
    """
    rope_type = inner.get(f"{stem}type", "default")
    rope_type = inner.get(f"{stem}rope_type", rope_type)
    if rope_type not in rope_types:
        raise UserError(
            f"{stem}rope_type={rope_type!r} is not supported; only {', '.join(rope_types)}"
        )
    share = f"{stem}partial_rotary_factor"
    if rope_type == "proportional":
        return {"rope_fraction": inner.real(share, 1.0)}
    if turning is None:
        inner.fixed(share, 1.0)
    settings: dict[str, Scalar] = {}
    if rope_type in ("linear", "llama3"):
        settings["rope_factor"] = inner.real(f"{stem}factor")
    if rope_type == "llama3":
        settings["rope_trained_context"] = inner.number(f"{stem}{_LLAMA3['rope_trained_context']}")
        for ours in ("rope_low_freq_factor", "rope_high_freq_factor"):
            settings[ours] = inner.real(f"{stem}{_LLAMA3[ours]}")
    return settings


def rope_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` of a mixer's settings.

    Raises:
        UnsayableError: it has no RoPE.
    """
    if values["rope_theta"] is None:
        raise UnsayableError("a mixer has rope_theta=None")
    found: dict[str, Any] = {"rope_theta": values["rope_theta"], "rope_type": "default"}
    if values["rope_factor"] != 1.0:
        found |= {"rope_type": "linear", "factor": values["rope_factor"]}
        if values["rope_trained_context"] is not None:
            found |= {"rope_type": "llama3"} | {t: values[o] for o, t in _LLAMA3.items()}
    elif values["rope_over"] == "turning":
        found |= {"partial_rotary_factor": values["rope_fraction"]}
    elif values["rope_fraction"] != 1.0:
        found |= {"rope_type": "proportional", "partial_rotary_factor": values["rope_fraction"]}
    return found


def expansion(hidden: int, width: int, what: str = "dense") -> float:
    """Of a feed-forward network's width.

    Raises:
        UserError: it cannot be built.
    """
    if hidden % 8:
        raise UserError(f"the {what} FFN width {hidden} is not a multiple of 8")
    return hidden / width


def attention_pieces(
    mixer: MixerSpec,
    width: int,
    theirs: str,
    ours: str,
    *,
    out: str = "o_proj",
    reads: int | None = None,
) -> Iterator[Piece]:
    """Projections of attention; queries, keys and values are one matrix of ours.

    Its input is as wide as the model, or as `reads` says.
    """
    sizes = sizes_of(mixer, width)
    q, kv = (sizes[key] * sizes["head_dim"] for key in ("num_heads", "num_kv_heads"))
    named = (("q_proj", q), ("k_proj", kv), ("v_proj", kv))
    matrices = [(f"{theirs}{name}.weight", num) for name, num in named]
    yield from rows(matrices, f"{ours}qkv_proj.weight", reads or width)
    yield Piece(f"{theirs}{out}.weight", f"{ours}out_proj.weight", (width, q))


def norm_pieces(
    width: int,
    theirs: str,
    ours: str,
    names: tuple[str, str] = ("input_layernorm", "post_attention_layernorm"),
) -> Iterator[Piece]:
    """The norm before a block's mixer, and that before its channel mixer."""
    for name, norm in zip(names, ("mixer_norm", "channel_norm"), strict=True):
        yield Piece(f"{theirs}{name}.weight", f"{ours}{norm}.weight", (width,))


def qk_norm_pieces(
    mixer: MixerSpec, width: int, theirs: str, ours: str, *, name: str = "norm"
) -> Iterator[Piece]:
    """Norms of each query and key."""
    head_dim = sizes_of(mixer, width)["head_dim"]
    for letter in "qk":
        target = f"{ours}{letter}_norm.weight"
        yield Piece(f"{theirs}{letter}_{name}.weight", target, (head_dim,))


def conv_pieces(mixer: MixerSpec, width: int, theirs: str, ours: str) -> Iterator[Piece]:
    """A short convolution and its projections."""
    values = sizes_of(mixer, width)
    yield Piece(f"{theirs}conv.weight", f"{ours}conv", (width, 1, values["kernel"]))
    yield Piece(f"{theirs}in_proj.weight", f"{ours}in_proj.weight", (3 * width, width))
    yield Piece(f"{theirs}out_proj.weight", f"{ours}out_proj.weight", (width, width))
    if values["bias"]:
        yield Piece(f"{theirs}conv.bias", f"{ours}conv_bias", (width,))
        yield Piece(f"{theirs}in_proj.bias", f"{ours}in_proj.bias", (3 * width,))
        yield Piece(f"{theirs}out_proj.bias", f"{ours}out_proj.bias", (width,))


def swiglu_pieces(
    block: BlockSpec,
    width: int,
    theirs: str,
    ours: str,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[Piece]:
    """Gate, up and down projection; the first two are one matrix of ours."""
    assert block.channel_mixer is not None
    d_ff = sizes_of(block.channel_mixer, width)["d_ff"]
    gate, up, down = (f"{theirs}{name}.weight" for name in names)
    yield from rows(((gate, d_ff), (up, d_ff)), f"{ours}gate_up_proj.weight", width)
    yield Piece(down, f"{ours}down_proj.weight", (width, d_ff))


def channel_mixers(spec: StackSpec) -> dict[str, ChannelMixerSpec]:
    """The first channel mixer of each name that a stack has."""
    found: dict[str, ChannelMixerSpec] = {}
    for block in spec.blocks:
        if block.channel_mixer is not None:
            found.setdefault(block.channel_mixer.name, block.channel_mixer)
    return found


def expert_pieces(
    channel: ChannelMixerSpec,
    width: int,
    theirs: str,
    ours: str,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[Piece]:
    """Gate, up and down projection of each expert; ours hold all experts.

    Experts of squared ReLU have no gate.
    """
    sizes = sizes_of(channel, width)
    d_ff, stream = sizes["d_expert"], sizes.get("d_latent", width)
    *into, down = names if sizes["activation"] == "swiglu" else names[1:]
    for expert in range(sizes["num_experts"]):
        for index, name in enumerate(into):
            part = (expert, slice(index * d_ff, (index + 1) * d_ff))
            stored = f"{theirs}{expert}.{name}.weight"
            yield Piece(stored, f"{ours}gate_up", (d_ff, stream), into=part)
        stored = f"{theirs}{expert}.{down}.weight"
        yield Piece(stored, f"{ours}down", (stream, d_ff), into=(expert,))


def shared_expert_pieces(
    channel: ChannelMixerSpec, width: int, theirs: str, ours: str
) -> Iterator[Piece]:
    """The expert that acts on every token, with a gate as the others; nothing if there is none."""
    if "d_shared" not in (sizes := sizes_of(channel, width)):
        return
    d_ff, gated = sizes["d_shared"], sizes["activation"] == "swiglu"
    into = ("gate_proj", "up_proj") if gated else ("up_proj",)
    target = f"{ours}shared.{'gate_up_proj' if gated else 'up_proj'}.weight"
    yield from rows([(f"{theirs}{name}.weight", d_ff) for name in into], target, width)
    yield Piece(f"{theirs}down_proj.weight", f"{ours}shared.down_proj.weight", (width, d_ff))


def solved(function: Callable[[float], float], value: float, guess: float) -> float:
    """The number near `guess` of which `function` makes `value`, to the last bit if there is one.

    A factor that a spec holds in another form must be written as it was read, and rounding may
    make it a neighbour of what solving for it gives.
    """
    near = [guess]
    for way in (-math.inf, math.inf):
        step = guess
        for _ in range(4):
            near.append(step := math.nextafter(step, way))
    return next((number for number in near if function(number) == value), guess)
