"""Mamba: a state space whose time step, input and output weights depend on the token (S6).

arXiv 2312.00752, section 3. ``(x, z) = W_in u``; ``x = silu(conv(x))``; ``(r, B, C) = W_x x``;
``dt = softplus(W_dt r + b)``; ``h = exp(dt A) h + dt x B``; ``y = C h + D x``;
``out = W_out(y * silu(z))``. A is negative by parametrisation, so every decay is below 1.

With ``core="conv"`` the convolution alone mixes tokens, so that what the state adds can be told.
A consumer reads the producer's x, dt, A and B with a C, D and gate of its own.

Shape suffixes: B batch, T time, D model width, I inner width, N states per inner channel,
R rank of dt, K kernel, L = K-1.
"""

import math
from typing import Annotated, Literal, NotRequired, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import Features, Gene, Held, MixerConfig, SharingMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.linear import Linear
from archloop.blocks.ops.conv import activated_conv, advance_past, causal_conv_step
from archloop.blocks.ops.decay_gate import step_size
from archloop.blocks.ops.precision import KeepsFloat32, precise, recurrent_dtype
from archloop.blocks.ops.selective_scan import selective_scan, selective_step
from archloop.blocks.ops.skip_gate import skip_gate
from archloop.blocks.ops.time_steps import initial_dt_bias
from archloop.blocks.widths import whole_width


class Sizes(TypedDict):
    """What follows from the model width; the convolution alone has no state."""

    d_inner: int
    kernel: int
    state_dim: NotRequired[int]
    dt_rank: NotRequired[int]


class Mamba(KeepsFloat32, SharingMixer):
    """Selective scan; I N float32 values of state and (K-1) I of the convolution's."""

    float32_params = frozenset({"a_log", "dt_bias"})
    no_decay = frozenset({"a_log"})
    lr_scale = {"a_log": 0.25, "dt_bias": 0.25}

    class Config(MixerConfig):
        """The paper's: expansion 2, 16 states a channel, kernel 4, dt of rank d_model/16."""

        through_sizes = frozenset({"expansion", "state_dim"})
        expansion: Annotated[float, Gene((1.0, 1.5, 2.0))] = Field(2.0, gt=0, le=8)
        state_dim: Annotated[int, Gene((8, 16, 32))] = Field(16, ge=1)
        kernel: Annotated[int, Gene((2, 4))] = Field(4, ge=1, le=64)
        core: Literal["recurrent", "conv"] = "recurrent"

        def sizes(self, d_model: int) -> Sizes:
            inner = whole_width(self.expansion, d_model)
            sizes: Sizes = {"d_inner": inner, "kernel": self.kernel}
            if self.core == "recurrent":
                sizes["state_dim"], sizes["dt_rank"] = self.state_dim, math.ceil(d_model / 16)
            return sizes

        def reach(self, d_model: int) -> int | None:
            return self.kernel - 1 if self.core == "conv" else None

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            inner, states, rank = self._widths(d_model)
            terms = {"z_proj": d_model * inner, "out_proj": inner * d_model}
            terms |= {"skip": inner} if states else {}
            if consumer:
                return terms | ({"c_proj": d_model * states} if states else {})
            terms |= {"x_proj": d_model * inner, "conv": inner * self.kernel, "conv_bias": inner}
            if not states:
                return terms
            return terms | {
                "select": inner * (rank + 2 * states),
                "dt_proj": rank * inner,
                "dt_bias": inner,
                "a_log": inner * states,
            }

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            inner, states, _ = self._widths(d_model)
            layout = {"conv": Held("recent", (self.kernel - 1, inner))}
            if states:
                layout["ssm"] = Held("recurrent", (inner, states))
            return layout

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            inner, states, _ = self._widths(d_model)
            terms = self._token_terms(d_model, num_tokens, consumer)
            # The parallel form of a consumer computes the producer's states again.
            return terms | {"scan": 7 * inner * states * num_tokens}

        def step_flop_terms(
            self, d_model: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            inner, states, _ = self._widths(d_model)
            # A consumer's step reads the producer's state, without taking it further.
            step = (2 if consumer else 7) * inner * states
            return self._token_terms(d_model, 1, consumer) | {"step": step}

        def _token_terms(self, d_model: int, num_tokens: int, consumer: bool) -> dict[str, int]:
            """FLOPs of what meets each token once: projections, convolution, gate."""
            params = self.param_terms(d_model, consumer=consumer)
            matrices = ("z_proj", "x_proj", "select", "dt_proj", "c_proj", "conv", "out_proj")
            gate = {"gate": 2 * num_tokens * self.sizes(d_model)["d_inner"]}
            return matrix_flops(params, matrices, num_tokens) | gate

        def _widths(self, d_model: int) -> tuple[int, int, int]:
            sizes = self.sizes(d_model)
            return sizes["d_inner"], sizes.get("state_dim", 0), sizes.get("dt_rank", 0)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        sizes = config.sizes(d_model)
        self.inner = sizes["d_inner"]
        self.has_state = config.core == "recurrent"
        self.z_proj = Linear(d_model, self.inner)
        self.out_proj = Linear(self.inner, d_model)
        if self.has_state:
            self.skip = nn.Parameter(torch.ones(self.inner))
        if consumer:
            if self.has_state:
                self.c_proj = Linear(d_model, config.state_dim)
            return
        self.x_proj = Linear(d_model, self.inner)
        self.conv = nn.Parameter(torch.empty(self.inner, config.kernel))
        self.conv_bias = nn.Parameter(torch.zeros(self.inner))
        nn.init.uniform_(self.conv, -(config.kernel**-0.5), config.kernel**-0.5)
        if self.has_state:
            self._add_state_space(sizes["dt_rank"], config.state_dim)

    def _add_state_space(self, rank: int, states: int) -> None:
        self.split = (rank, states, states)
        self.select = Linear(self.inner, sum(self.split))
        self.dt_proj = Linear(rank, self.inner)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.inner))
        real = recurrent_dtype(torch.get_default_dtype())
        poles_N = torch.arange(1, states + 1, dtype=real)
        self.a_log = nn.Parameter(poles_N.log().repeat(self.inner, 1))

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        x_BTI = self._convolve(x_BTD, state, span)
        if not self.has_state:
            return self._out(x_BTD, x_BTI)
        dt_BTI, b_BTN, c_BTN = self._select(x_BTI, span.valid_BT)
        start = None if state is None else state["ssm"].to(dt_BTI.dtype)
        y_BTI, last_BIN = selective_scan(x_BTI, dt_BTI, self._poles(), b_BTN, c_BTN, start)
        if state is not None:
            state["ssm"].copy_(last_BIN)
        return self._read_out(x_BTD, y_BTI, x_BTI)

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        x_BI = self._convolve_step(x_BD, state)
        if not self.has_state:
            return self._out(x_BD, x_BI)
        dt_BI, b_BN, c_BN = self._select(x_BI, None)
        y_BI = self._advance(x_BI, dt_BI, b_BN, c_BN, state).to(x_BI.dtype)
        return self._read_out(x_BD, y_BI, x_BI)

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        x_BTI = self._convolve(x_BTD, state, span)
        if not self.has_state:
            return {"x": x_BTI}
        dt_BTI, b_BTN, c_BTN = self._select(x_BTI, span.valid_BT)
        shared = {"x": x_BTI, "dt": dt_BTI, "a": self._poles(), "b": b_BTN, "c": c_BTN}
        if state is not None:
            start_BIN = state["ssm"].to(dt_BTI.dtype, copy=True)
            _, last_BIN = selective_scan(x_BTI, dt_BTI, shared["a"], b_BTN, c_BTN, start_BIN)
            state["ssm"].copy_(last_BIN)
            shared["start"] = start_BIN
        return shared

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        x_BTI = shared["x"]
        if not self.has_state:
            return self._out(x_BTD, x_BTI)
        c_BTN = self.c_proj(x_BTD) if self._is_consumer() else shared["c"]
        start = shared.get("start")
        y_BTI, _ = selective_scan(x_BTI, shared["dt"], shared["a"], shared["b"], c_BTN, start)
        return self._read_out(x_BTD, y_BTI, x_BTI)

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        x_BI = self._convolve_step(x_BD, state)
        if not self.has_state:
            return {"x": x_BI}
        dt_BI, b_BN, c_BN = self._select(x_BI, None)
        self._advance(x_BI, dt_BI, b_BN, c_BN, state)
        return {"x": x_BI, "h": state["ssm"], "c": c_BN}

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        x_BI = shared["x"]
        if not self.has_state:
            return self._out(x_BD, x_BI)
        c_BN = self.c_proj(x_BD) if self._is_consumer() else shared["c"]
        y_BI = (shared["h"] * c_BN[:, None]).sum(-1).to(x_BI.dtype)
        return self._read_out(x_BD, y_BI, x_BI)

    def _is_consumer(self) -> bool:
        return hasattr(self, "c_proj")

    def _poles(self) -> Tensor:
        return -precise(self.a_log).exp()

    def _convolve(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        u_BTI = self.x_proj(x_BTD)
        past_BLI = None if state is None else state["conv"]
        x_BTI, _ = activated_conv(u_BTI, self.conv, self.conv_bias, past_BLI)
        if past_BLI is not None:
            advance_past(past_BLI, u_BTI, span.lengths_B)
        return x_BTI

    def _convolve_step(self, x_BD: Tensor, state: State) -> Tensor:
        u_BI = self.x_proj(x_BD)
        x_BI = causal_conv_step(u_BI, self.conv, state["conv"])
        advance_past(state["conv"], u_BI[:, None])
        return F.silu(x_BI + self.conv_bias)

    def _select(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Time step, input and output weights of each token; padding takes no time."""
        rank, b, c = self.select(x).split(self.split, -1)
        dt = step_size(self.dt_proj(rank), self.dt_bias)
        return dt if valid is None else dt * valid[..., None], b, c

    def _advance(
        self, x_BI: Tensor, dt_BI: Tensor, b_BN: Tensor, c_BN: Tensor, state: State
    ) -> Tensor:
        h_BIN, y_BI = selective_step(x_BI, dt_BI, self._poles(), b_BN, c_BN, state["ssm"])
        state["ssm"].copy_(h_BIN)
        return y_BI

    def _read_out(self, u: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Output from the block's input u, what the states gave and what went into them."""
        return self.out_proj(skip_gate(y, x, self.skip, self.z_proj(u)))

    def _out(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(y * F.silu(self.z_proj(x)))
