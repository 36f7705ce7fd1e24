"""What a block is made of: the contracts of sequence mixers and channel mixers.

Read `SequenceMixer` first. A new mixer is one file in `blocks/mixers/` with one subclass that holds
its `Config` (hyper-parameters, genes, costs, what its state holds) and writes `mix` and `mix_step`,
or, as a `SharingMixer`, the two halves of each that other blocks can share;
padding, packed sequences and the bookkeeping of state are settled here, once, for every family.
Whatever such a file needs is imported from here.

Shape suffixes: B batch, T time, D model width.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from archloop.blocks.config import ChannelConfig, Config, Gene, MixerConfig
from archloop.blocks.fast import ChannelForm, MixerForm
from archloop.blocks.packing import runs, unpack
from archloop.blocks.span import Span, align_right_padding, check_marks, default_positions
from archloop.blocks.state import Held, State

__all__ = [
    "ChannelConfig",
    "ChannelMixer",
    "Config",
    "Features",
    "Gene",
    "Held",
    "MixerConfig",
    "SequenceMixer",
    "SharingMixer",
    "Span",
    "State",
]

Features = dict[str, Tensor]
"""What a shareable mixer computes per token for itself and its consumers, opaque to the decoder."""
Mixing = Callable[[Tensor, State, Span], Tensor]
"""`SequenceMixer.mix` with a state."""


class SequenceMixer(nn.Module):
    """Moves information along time, and can do so in parallel or one token at a time.

    A subclass writes `mix` and `mix_step`. Whoever has a mixer alone calls `forward` and `step`,
    which check what they are given and count the tokens; a decoder checks and counts once for all
    its mixers, and calls `run` and `run_step`.

    Attributes:
        name: the plug-in's name, set by the registry.
        shareable: other blocks may name this one in `state_from`; see `SharingMixer`.
        written: the methods that a subclass must write.
        packs: `mix` honours `Span.segments_BT` itself; otherwise `forward` unpacks for it.
        no_decay: names of parameters (relative to the mixer) that take no weight decay, besides
            those with fewer than two dimensions.
        lr_scale: factors on the learning rate, by parameter name.
        form: computes in `mix`'s place where it is set: by exporters that trace a mixer apart.
        placed: what it computes depends on the place of its block by more than its weights, so a
            compiler would compile it for each block anew.
    """

    name: ClassVar[str] = ""
    written: ClassVar[tuple[str, ...]] = ("mix", "mix_step")
    placed: ClassVar[bool] = False
    shareable: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    no_decay: ClassVar[frozenset[str]] = frozenset()
    lr_scale: ClassVar[Mapping[str, float]] = {}
    form: "Mixing | None" = None

    Config: ClassVar[Any]

    def __init__(self, config: MixerConfig, d_model: int) -> None:
        super().__init__()
        self.config: Any = config
        self.d_model = d_model
        self.input_width = config.input_width(d_model)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls):
            cls.Config.owner = cls

    @staticmethod
    def missing_members(mixer: type["SequenceMixer"]) -> list[str]:
        """Names of what a mixer must define and does not."""
        base: Any = SharingMixer if issubclass(mixer, SharingMixer) else SequenceMixer
        missing = [name for name in base.written if getattr(mixer, name) is getattr(base, name)]
        return missing if hasattr(mixer, "Config") else ["Config", *missing]

    # --- what a subclass writes -------------------------------------------------------------

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        """The mixer in parallel form, from `state` (None: zero) and advancing it in place."""
        raise AssertionError(f"{type(self).__name__} must write mix")

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        """The mixer for one token per row, advancing the state in place.

        No complex tensors, no FFT, no data-dependent control flow, so that it exports.
        """
        raise AssertionError(f"{type(self).__name__} must write mix_step")

    def fast_form(self) -> MixerForm | None:
        """What this mixer computes, if an engine may have a kernel for it."""
        return None

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
            dtype = min((p.dtype for p in self.parameters()), key=lambda dtype: dtype.itemsize)
        layout = self.config.state_layout(self.d_model, max_context)
        place = next(self.parameters()).device if device is None else device
        state = State(
            max_context,
            **{
                name: torch.zeros(batch_size, *held.shape, dtype=held.dtype(dtype), device=place)
                for name, held in layout.items()
            },
        )
        state.by_position = frozenset(name for name in layout if layout[name].retention == "cache")
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
            segments_BT: packed sequences, one for each run of equal ids; training only.
            mask_BT: True at real tokens; padding may stand left or right, its output is 0.
            shared: features of this or an earlier block; then `state` is left alone.

        Raises:
            ValueError: no tokens, arguments whose shapes do not agree, segments together with a
                state, or more tokens than the state has room for.
        """
        self._check_shape("x_BTD", x_BTD, ("rows", "tokens"), state)
        check_marks(
            x_BTD.shape[:2], positions_BT=positions_BT, segments_BT=segments_BT, mask_BT=mask_BT
        )
        if segments_BT is not None and state is not None:
            raise ValueError("segments_BT marks packed training sequences; it takes no state")
        segments_BT = None if segments_BT is None else runs(segments_BT)
        if positions_BT is None:
            positions_BT = default_positions(x_BTD, state, segments_BT, mask_BT)
        order_BT, span = None, Span(positions_BT, segments_BT)
        if mask_BT is not None:
            order_BT, span = align_right_padding(mask_BT, positions_BT, segments_BT)
            x_BTD = x_BTD.gather(1, order_BT[..., None].expand_as(x_BTD))
        own = state if shared is None else None
        _check_room(own, span)
        y_BTD = self.run(x_BTD, state, span, shared)
        _advance(own, span)
        if order_BT is None or mask_BT is None:
            return y_BTD, state
        y_BTD = torch.zeros_like(y_BTD).scatter(1, order_BT[..., None].expand_as(y_BTD), y_BTD)
        return y_BTD * mask_BT[..., None], state

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
            ValueError: the state is full, or shapes do not agree.
        """
        self._check_shape("x_BD", x_BD, ("rows",), state)
        check_marks(x_BD.shape[:1], positions_B=positions_B)
        own = state if shared is None and not state.static else None
        if own is not None and own.num_tokens >= own.max_context:
            raise _full(own.num_tokens + 1, own)
        y_BD = self.run_step(x_BD, state, positions_B, shared)
        if own is not None:
            own.num_tokens += 1
        return y_BD, state

    # --- what a decoder calls ---------------------------------------------------------------

    def run(
        self, x_BTD: Tensor, state: State | None, span: Span, shared: Features | None = None
    ) -> Tensor:
        """`forward` once padding stands on the right, without counting the tokens."""
        assert shared is None, f"{type(self).__name__} cannot read another's features"
        if state is not None:
            with torch.no_grad():
                return (self.form or self.mix)(x_BTD, state, span)
        if span.segments_BT is not None and not self.packs:
            sequences = unpack(span.segments_BT)
            y_NTD = self.mix(sequences.split(x_BTD), None, Span(sequences.positions_NT))
            return sequences.join(y_NTD, *x_BTD.shape[:2])
        return self.mix(x_BTD, None, replace(span, lengths_B=None))

    def run_step(
        self,
        x_BD: Tensor,
        state: State | None,
        positions_B: Tensor,
        shared: Features | None = None,
    ) -> Tensor:
        """`step` without counting the token; `state` may be None where `shared` is given."""
        assert shared is None, f"{type(self).__name__} cannot read another's features"
        assert state is not None
        with torch.no_grad():
            return self.mix_step(x_BD, state, positions_B)

    # --- inside -----------------------------------------------------------------------------

    def _check_shape(
        self, name: str, x: Tensor, sizes: tuple[str, ...], state: State | None
    ) -> None:
        """Tensors of other shapes would broadcast, to wrong outputs and states."""
        if x.dim() != len(sizes) + 1 or x.shape[-1] != self.input_width or 0 in x.shape:
            twice = self.input_width != self.d_model
            width = f"{self.input_width}" if twice else f"d_model={self.d_model}"
            wanted = ", ".join([*sizes, width])
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; must be ({wanted}), with at least one token"
            )
        for tensor in () if state is None else state.tensors.values():
            if tensor.shape[0] != x.shape[0]:
                raise ValueError(
                    f"{name} has {x.shape[0]} rows and its state {tensor.shape[0]}; "
                    "make one for as many rows with init_state"
                )

    if TYPE_CHECKING:

        def __call__(
            self, x_BTD: Tensor, state: State | None = None, **kwargs: Any
        ) -> tuple[Tensor, State | None]: ...


class SharingMixer(SequenceMixer):
    """A mixer in two halves, so that other blocks can use the first half's results.

    The first half computes features of each token (keys and values, say) and advances the state;
    the second reads them with the block's own queries. A block that names this one in `state_from`
    runs the second half alone. A subclass writes both halves, for many tokens and for one.
    """

    written = ("features", "read", "step_features", "step_read")
    shareable = True

    # --- what a subclass writes -------------------------------------------------------------

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        """Per-token features for this block and its consumers; advances the state in place."""
        raise AssertionError(f"{type(self).__name__} must write features")

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        """Output from a block's own queries and somebody's features."""
        raise AssertionError(f"{type(self).__name__} must write read")

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        """As `features`, for one token per row."""
        raise AssertionError(f"{type(self).__name__} must write step_features")

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        """As `read`, for one token per row."""
        raise AssertionError(f"{type(self).__name__} must write step_read")

    # --- what follows from it ---------------------------------------------------------------

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        """Both halves."""
        return self.read(x_BTD, self.features(x_BTD, state, span), span)

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        """Both halves."""
        return self.step_read(x_BD, self.step_features(x_BD, state, positions_B), positions_B)

    def run(
        self, x_BTD: Tensor, state: State | None, span: Span, shared: Features | None = None
    ) -> Tensor:
        """The second half alone where `shared` holds the features of a source."""
        if shared is not None:
            return self.read(x_BTD, shared, span)
        return super().run(x_BTD, state, span)

    def run_step(
        self,
        x_BD: Tensor,
        state: State | None,
        positions_B: Tensor,
        shared: Features | None = None,
    ) -> Tensor:
        """Likewise, for one token per row."""
        if shared is None:
            return super().run_step(x_BD, state, positions_B)
        with torch.no_grad():
            return self.step_read(x_BD, shared, positions_B)

    def share(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        """`features` of a mixer alone: counts the tokens."""
        features = self.run_features(x_BTD, state, span)
        _advance(state, span)
        return features

    def share_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        """`step_features`, likewise."""
        features = self.run_step_features(x_BD, state, positions_B)
        if not state.static:
            state.num_tokens += 1
        return features

    def run_features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        """`features` without counting the tokens: what a decoder calls."""
        assert span.segments_BT is None or self.packs, "the decoder unpacks for such a mixer"
        with torch.set_grad_enabled(torch.is_grad_enabled() and state is None):
            return self.features(x_BTD, state, span)

    def run_step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        """`step_features`, likewise."""
        with torch.no_grad():
            return self.step_features(x_BD, state, positions_B)


class ChannelMixer(nn.Module):
    """Acts on each token alone: ``forward(x_BTD) -> x_BTD`` for any leading dimensions.

    Attributes:
        name: the plug-in's name, set by the registry.
        no_decay: as of a `SequenceMixer`.
        lr_scale: likewise.
    """

    name: ClassVar[str] = ""
    no_decay: ClassVar[frozenset[str]] = frozenset()
    lr_scale: ClassVar[Mapping[str, float]] = {}

    Config: ClassVar[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls):
            cls.Config.owner = cls

    @staticmethod
    def missing_members(mixer: type["ChannelMixer"]) -> list[str]:
        """Names of what a channel mixer must define and does not."""
        missing = ["forward"] if mixer.forward is ChannelMixer.forward else []
        return missing if hasattr(mixer, "Config") else ["Config", *missing]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each token."""
        raise AssertionError(f"{type(self).__name__} must write forward")

    @property
    def asks_host(self) -> bool:
        """Whether `forward` waits, for many tokens, for numbers from the device to decide what to
        run next, which no CUDA graph can hold.
        """
        return False

    def fast_form(self) -> ChannelForm | None:
        """What this mixer computes, if an engine may have a kernel for it."""
        return None

    def after_optimizer_step(self) -> None:
        """Called once per optimiser step, on every rank (expert bias update)."""

    if TYPE_CHECKING:

        def __call__(self, x_BTD: Tensor) -> Tensor: ...


def _advance(state: State | None, span: Span) -> None:
    if state is None or state.static:
        return
    held = _held_after(state, span)
    assert held <= state.max_context, f"{held} tokens in a state for {state.max_context}"
    state.num_tokens = max(state.num_tokens, held)


def _check_room(state: State | None, span: Span) -> None:
    if state is None or state.static:
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
