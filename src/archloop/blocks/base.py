"""What a block is made of: the contracts of sequence mixers, channel mixers and their state.

Read `SequenceMixer` first. A new mixer is one file in `blocks/mixers/` with one subclass that holds
its `Config` (hyper-parameters, genes, costs, the layout of its state) and writes `mix` and
`mix_step`; padding, packed sequences and the bookkeeping of state are settled here, once, for every
family.

Shape suffixes: B batch, T time, D model width.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from archloop.blocks.ops.precision import recurrent_dtype
from archloop.blocks.packing import segment_positions, unpack
from archloop.errors import UserError

Features = dict[str, Tensor]
"""What a shareable mixer computes per token for itself and its consumers, opaque to the decoder."""


@dataclass(frozen=True)
class Gene:
    """Marks a config field as searchable: ``kernel: Annotated[int, Gene((3, 5, 7))] = 3``.

    An absolute gene (kernel, window, head_dim) means the same number at every width; a ratio gene
    (expansion, queries per KV head) is relative to a width.
    """

    values: tuple[Any, ...]
    scale: Literal["absolute", "ratio"] = "absolute"


class Config(BaseModel):
    """Hyper-parameters of a mixer: frozen data that knows its genes and its costs.

    Sizes follow from `d_model`, which is not part of the config, so that one config builds at
    every width. FLOPs count one multiply-accumulate as two, at batch 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    owner: ClassVar[Any]

    @classmethod
    def genes(cls) -> dict[str, Gene]:
        """The searchable fields, by name."""
        found = {}
        for name, field in cls.model_fields.items():
            for mark in field.metadata:
                if isinstance(mark, Gene):
                    found[name] = mark
        return found

    @abstractmethod
    def sizes(self, d_model: int) -> dict[str, int]:
        """Every size that the module takes at a width (two configs with equal sizes coincide).

        Raises:
            UserError: the config cannot be built at this width; names field, value and remedy.
        """

    @abstractmethod
    def num_params(self, d_model: int, *, consumer: bool = False) -> int:
        """Parameters of the module (buffers are not parameters).

        Args:
            d_model: model width.
            consumer: the module takes its features from an earlier block (`state_from`).
        """

    @abstractmethod
    def prefill_flops(
        self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
    ) -> int:
        """FLOPs to process `num_tokens` at once after `context` tokens are in the state."""

    def decode_flops(self, d_model: int, context: int, *, consumer: bool = False) -> int:
        """FLOPs of one decode step after `context` tokens are in the state."""
        return self.prefill_flops(d_model, 1, context, consumer=consumer)

    def build(
        self, d_model: int, block_index: int = 0, num_blocks: int = 1, *, consumer: bool = False
    ) -> Any:
        """Make the module.

        Raises:
            ValueError: as `sizes`, no such block, or the mixer cannot be a consumer.
        """
        if d_model < 1:
            raise ValueError(f"d_model={d_model} must be at least 1")
        if not 0 <= block_index < num_blocks:
            raise ValueError(
                f"block_index={block_index} is no block of num_blocks={num_blocks}; "
                f"allowed: 0 to {num_blocks - 1}"
            )
        self.sizes(d_model)
        if consumer and not getattr(self.owner, "shareable", False):
            raise UserError(f"state_from: {self.owner.__name__} does not share its features")
        return self.owner(
            self, d_model, block_index=block_index, num_blocks=num_blocks, consumer=consumer
        )


class Held(NamedTuple):
    """One tensor of a mixer's state.

    Attributes:
        kind: ``cache`` has a slot for each position, kept for good; ``recent`` holds the last few
            tokens, or a ring of them; ``recurrent`` sums up all tokens, in at least float32.
        shape: for one sequence.
    """

    kind: Literal["cache", "recent", "recurrent"]
    shape: tuple[int, ...]

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Its own, when activations have `dtype`."""
        return recurrent_dtype(dtype) if self.kind == "recurrent" else dtype


class MixerConfig(Config):
    """Config of a sequence mixer, which besides parameters and FLOPs has a state."""

    @abstractmethod
    def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
        """The tensors of state, by name, of a sequence with room for `context` tokens."""

    def state_bytes(self, d_model: int, context: int, dtype: torch.dtype) -> int:
        """Bytes of state for one sequence of `context` tokens; equals `State.nbytes`."""
        return sum(
            math.prod(tensor.shape) * tensor.dtype(dtype).itemsize
            for tensor in self.state_layout(d_model, context).values()
        )


class State:
    """What a mixer carries between tokens: named tensors at fixed addresses, batch first.

    Attributes:
        tensors: KV cache, convolution state, recurrent state, ..., by name.
        max_context: tokens per row that the state has room for.
        num_tokens: host-side upper bound on the tokens that any row holds.
        static: set by runtimes that capture or compile a step: `reach` is then constant.
        by_position: names of the tensors (batch, ..., slot, ...) where each token has the slot of
            its position for good and slots past a row's length are never read, so that going back
            over tokens needs no copy of them.
    """

    def __init__(self, max_context: int, **tensors: Tensor) -> None:
        self.tensors = tensors
        self.max_context = max_context
        self.num_tokens = 0
        self.static = False
        self.by_position: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def reach(self, num_new: int) -> int:
        """How many cache slots may be in use once `num_new` more tokens are in."""
        if self.static:
            return self.max_context
        return min(self.num_tokens + num_new, self.max_context)

    def step_reach(self, device: torch.device) -> int:
        """`reach` of a decode step, on a GPU in whole steps of 256 slots.

        Attention libraries there plan anew for each number of keys, which cost 100 ms a token.
        """
        if device.type != "cuda":
            return self.reach(1)
        return min(-(-self.reach(1) // 256) * 256, self.max_context)

    def snapshot(self) -> "State":
        """An independent copy."""
        return self._copy(self.tensors.keys())

    def mark(self) -> "State":
        """As `snapshot`, without the tensors in `by_position`.

        Enough to go back over tokens taken in since, no good once earlier tokens were replaced.
        """
        return self._copy(self.tensors.keys() - self.by_position)

    def restore(self, snapshot: "State") -> None:
        """Go back to a snapshot or mark, in place."""
        for name, tensor in snapshot.tensors.items():
            self.tensors[name].copy_(tensor)
        self.num_tokens = snapshot.num_tokens

    def _copy(self, names: Iterable[str]) -> "State":
        copy = State(self.max_context, **{name: self.tensors[name].clone() for name in names})
        copy.num_tokens, copy.static = self.num_tokens, self.static
        copy.by_position = self.by_position
        return copy

    def reset(self) -> None:
        """Forget everything, in place."""
        for tensor in self.tensors.values():
            tensor.zero_()
        self.num_tokens = 0


@dataclass(frozen=True)
class Span:
    """Where the tokens of one call stand. Padding, if any, is on the right.

    Attributes:
        positions_BT: position of each token in its sequence. With a state, each row is contiguous
            and starts at the number of tokens that the state already holds.
        segments_BT: in packed training batches, which sequence a token belongs to.
        lengths_B: real tokens per row; None when all T are real.
    """

    positions_BT: Tensor
    segments_BT: Tensor | None = None
    lengths_B: Tensor | None = None

    @property
    def valid_BT(self) -> Tensor | None:
        """True at real tokens; None when all are."""
        if self.lengths_B is None:
            return None
        steps_T = torch.arange(self.positions_BT.shape[1], device=self.positions_BT.device)
        return steps_T < self.lengths_B[:, None]


class SequenceMixer(nn.Module):
    """Moves information along time, and can do so in parallel or one token at a time.

    A subclass writes `mix` and `mix_step`. One that can share its features sets `shareable` and
    writes `features`, `read`, `step_features` and `step_read` instead: then a consumer block runs
    `read` alone, on the features of its source.

    Attributes:
        name: the plug-in's name, set by the registry.
        is_global: reaches every earlier token exactly (full attention); interleaving rules ask.
        shareable: other blocks may name this one in `state_from`.
        packs: `mix` honours `Span.segments_BT` itself; otherwise `forward` unpacks for it.
        no_decay: names of parameters (relative to the mixer) that take no weight decay, besides
            those with fewer than two dimensions.
        lr_scale: factors on the learning rate, by parameter name.
    """

    name: ClassVar[str] = ""
    is_global: ClassVar[bool] = False
    shareable: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    no_decay: ClassVar[frozenset[str]] = frozenset()
    lr_scale: ClassVar[Mapping[str, float]] = {}

    Config: ClassVar[Any]

    def __init__(self, config: MixerConfig, d_model: int) -> None:
        super().__init__()
        self.config: Any = config
        self.d_model = d_model

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls):
            cls.Config.owner = cls

    # --- what a subclass writes -------------------------------------------------------------

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        """The mixer in parallel form, from `state` (None: zero) and advancing it in place."""
        assert self.shareable, f"{type(self).__name__} must write mix or be shareable"
        return self.read(x_BTD, self.features(x_BTD, state, span), span)

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        """Per-token features for this block and its consumers; advances the state in place."""
        raise AssertionError(f"{type(self).__name__} is not shareable")

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        """Output from a block's own queries and somebody's features."""
        raise AssertionError(f"{type(self).__name__} is not shareable")

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        """As `features`, for one token per row."""
        raise AssertionError(f"{type(self).__name__} is not shareable")

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        """As `read`, for one token per row."""
        raise AssertionError(f"{type(self).__name__} is not shareable")

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        """The mixer for one token per row, advancing the state in place.

        No complex tensors, no FFT, no data-dependent control flow, so that it exports.
        """
        assert self.shareable, f"{type(self).__name__} must write mix_step or be shareable"
        return self.step_read(x_BD, self.step_features(x_BD, state, positions_B), positions_B)

    # --- what callers use -------------------------------------------------------------------

    def init_state(
        self,
        batch_size: int,
        max_context: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """A preallocated, empty state; dtype and device default to the parameters' own.

        Caches and recent tokens take `dtype`, recurrent state at least float32.
        """
        if dtype is None:
            # Some parameters stay float32 in a cast; the others have what activations have.
            dtype = min((p.dtype for p in self.parameters()), key=lambda kind: kind.itemsize)
        layout = self.config.state_layout(self.d_model, max_context)
        place = next(self.parameters()).device if device is None else device
        state = State(
            max_context,
            **{
                name: torch.zeros(batch_size, *held.shape, dtype=held.dtype(dtype), device=place)
                for name, held in layout.items()
            },
        )
        state.by_position = frozenset(name for name in layout if layout[name].kind == "cache")
        return state

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        *,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        shared: Features | None = None,
    ) -> tuple[Tensor, State | None]:
        """Process T tokens per row at once.

        Args:
            x_BTD: inputs.
            state: None in training (starts from zero, keeps none). Otherwise it is advanced in
                place, without autograd, to after each row's last real token, and returned.
            positions_BT: default: each row's real tokens counted from the state's `num_tokens`, or
                from 0; give them where rows of the state hold different numbers of tokens.
            segments_BT: packed sequences, training only.
            mask_BT: True at real tokens; padding may stand left or right, its output is 0.
            shared: features of this or an earlier block; then `state` is left alone.

        Raises:
            ValueError: no tokens, segments together with a state, or more tokens than the state
                has room for.
        """
        if x_BTD.shape[1] == 0:
            raise ValueError(f"x_BTD has shape {tuple(x_BTD.shape)}; give at least one token")
        if segments_BT is not None and state is not None:
            raise ValueError("segments_BT marks packed training sequences; it takes no state")
        if positions_BT is None:
            positions_BT = default_positions(x_BTD, state, segments_BT, mask_BT)
        if mask_BT is None:
            span = Span(positions_BT, segments_BT)
            _check_room(state, span, shared)
            return self.run(x_BTD, state, span, shared), state
        order_BT, span = align_right_padding(mask_BT, positions_BT, segments_BT)
        _check_room(state, span, shared)
        x_BTD = x_BTD.gather(1, order_BT[..., None].expand_as(x_BTD))
        y_BTD = self.run(x_BTD, state, span, shared)
        y_BTD = torch.zeros_like(y_BTD).scatter(1, order_BT[..., None].expand_as(y_BTD), y_BTD)
        return y_BTD * mask_BT[..., None], state

    def share(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        """`features`, for this block and its consumers, with the state's bookkeeping."""
        assert span.segments_BT is None or self.packs, "the decoder unpacks for such a mixer"
        with torch.set_grad_enabled(torch.is_grad_enabled() and state is None):
            features = self.features(x_BTD, state, span)
        _advance(state, span)
        return features

    def share_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        """`step_features`, likewise."""
        with torch.no_grad():
            features = self.step_features(x_BD, state, positions_B)
        if not state.static:
            state.num_tokens += 1
        return features

    def step(
        self,
        x_BD: Tensor,
        state: State,
        *,
        positions_B: Tensor,
        shared: Features | None = None,
    ) -> tuple[Tensor, State]:
        """Process one token per row; positions_B counts the tokens already in each row's state.

        Raises:
            ValueError: the state is full.
        """
        with torch.no_grad():
            if shared is not None:
                return self.step_read(x_BD, shared, positions_B), state
            if not state.static and state.num_tokens >= state.max_context:
                raise _full(state.num_tokens + 1, state)
            y_BD = self.mix_step(x_BD, state, positions_B)
        if not state.static:
            state.num_tokens += 1
        return y_BD, state

    def run(
        self, x_BTD: Tensor, state: State | None, span: Span, shared: Features | None = None
    ) -> Tensor:
        """`forward` once padding stands on the right; what the decoder calls."""
        if shared is not None:
            return self.read(x_BTD, shared, span)
        if state is not None:
            with torch.no_grad():
                y_BTD = self.mix(x_BTD, state, span)
            _advance(state, span)
            return y_BTD
        if span.segments_BT is not None and not self.packs:
            sequences = unpack(span.segments_BT)
            y_NTD = self.mix(sequences.split(x_BTD), None, Span(sequences.positions_NT))
            return sequences.join(y_NTD, *x_BTD.shape[:2])
        return self.mix(x_BTD, None, replace(span, lengths_B=None))

    if TYPE_CHECKING:

        def __call__(  # noqa: D102
            self, x_BTD: Tensor, state: State | None = None, **kwargs: Any
        ) -> tuple[Tensor, State | None]: ...


class ChannelMixer(nn.Module):
    """Acts on each token alone: ``forward(x_BTD) -> x_BTD`` for any leading dimensions."""

    name: ClassVar[str] = ""
    no_decay: ClassVar[frozenset[str]] = frozenset()
    lr_scale: ClassVar[Mapping[str, float]] = {}

    Config: ClassVar[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls):
            cls.Config.owner = cls

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each token."""

    def after_optimizer_step(self) -> None:
        """Called once per optimiser step, on every rank (expert bias update)."""

    if TYPE_CHECKING:

        def __call__(self, x_BTD: Tensor) -> Tensor: ...  # noqa: D102


class ChannelConfig(Config):
    """Config of a channel mixer: costs do not depend on the context."""

    def num_active_params(self, d_model: int) -> int:
        """Parameters that act on one token."""
        return self.num_params(d_model)


def default_positions(
    x_BTD: Tensor, state: State | None, segments_BT: Tensor | None, mask_BT: Tensor | None
) -> Tensor:
    """Contiguous positions, from the tokens in the state, restarting at each packed sequence."""
    batch, time = x_BTD.shape[:2]
    steps_T = torch.arange(time, device=x_BTD.device)
    if segments_BT is not None:
        return segment_positions(segments_BT)
    start = 0 if state is None else state.num_tokens
    if mask_BT is not None:
        return start + (mask_BT.cumsum(1) - 1).clamp(min=0)
    return (start + steps_T).expand(batch, time)


def align_right_padding(
    mask_BT: Tensor, positions_BT: Tensor, segments_BT: Tensor | None
) -> tuple[Tensor, Span]:
    """The order that puts each row's real tokens first, and the span in that order."""
    order_BT = torch.argsort(~mask_BT, dim=1, stable=True)
    lengths_B = mask_BT.sum(1)
    steps_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    if segments_BT is not None:
        positions_BT = positions_BT.gather(1, order_BT)
        segments_BT = segments_BT.gather(1, order_BT)
        # Padding after the last sequence must not join it.
        segments_BT = torch.where(steps_T < lengths_B[:, None], segments_BT, -1)
        return order_BT, Span(positions_BT, segments_BT, lengths_B)
    first_B = positions_BT.gather(1, order_BT[:, :1])
    return order_BT, Span(first_B + steps_T, None, lengths_B)


def _advance(state: State | None, span: Span) -> None:
    if state is None or state.static:
        return
    held = _held_after(state, span)
    assert held <= state.max_context, f"{held} tokens in a state for {state.max_context}"
    state.num_tokens = max(state.num_tokens, held)


def _check_room(state: State | None, span: Span, shared: Features | None) -> None:
    if state is None or state.static or shared is not None:
        return
    if (held := _held_after(state, span)) > state.max_context:
        raise _full(held, state)


def _held_after(state: State, span: Span) -> int:
    """Tokens in the fullest row after a call."""
    if span.lengths_B is None:
        return state.num_tokens + span.positions_BT.shape[1]
    return int((span.positions_BT[:, 0] + span.lengths_B).amax())


def _full(held: int, state: State) -> ValueError:
    return ValueError(
        f"{held} tokens do not fit into a state of max_context={state.max_context}; "
        "make a larger one with init_state"
    )
