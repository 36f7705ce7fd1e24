"""Mamba-2 (arXiv 2405.21060): a matrix state per head that decays by one input-dependent scalar.

``x, B, C = silu(conv_4(W u))``; ``dt = softplus(W_dt u + b)``; ``S_t = exp(-e^A dt) S_{t-1} +
B_t (dt x_t)^T``; ``y_t = S_t^T C_t + D x_t``; out ``W_out RMSNorm(y * silu(z))``, gate before norm.
Falcon-H1 (arXiv 2507.22448) norms before the gate or not at all, and has a factor on each of z, x,
B, C and dt as they are projected.

A block that shares this one's state runs its own C (without convolution, which would need a state),
z and D. ``core="conv"`` keeps everything but the recurrence: ``y_t = x_t``.

Shape suffixes: B batch, T time, D model width, I inner width, N heads, G groups, K state (key)
width, V head width, L past inputs of the convolution.
"""

from typing import Annotated, Literal, NotRequired, Self, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import Features, Gene, Held, MixerConfig, SharingMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.linear import Linear
from archloop.blocks.ops import linear_attention, ssd
from archloop.blocks.ops.conv import activated_conv, advance_past, causal_conv_step
from archloop.blocks.ops.heads import join_heads, split_heads
from archloop.blocks.ops.multiply import scaled
from archloop.blocks.ops.precision import KeepsFloat32, precise
from archloop.blocks.ops.skip_gate_norm import skip_gate_norm
from archloop.blocks.ops.time_steps import initial_dt_bias
from archloop.blocks.widths import count_heads, scaled_heads, whole_width
from archloop.errors import UserError

NORMS = ("after_gate", "before_gate", "none")
MULTIPLIERS = (0.25, 0.5, 1.0, 2.0)


class Sizes(TypedDict):
    """What follows from the model width; the convolution alone has no state."""

    d_inner: int
    num_groups: int
    kernel: int
    num_heads: NotRequired[int]
    head_dim: NotRequired[int]
    state_dim: NotRequired[int]


class Mamba2(KeepsFloat32, SharingMixer):
    """State-space duality; N K V values of state in at least float32, and the convolution's."""

    float32_params = frozenset({"log_rate", "dt_bias"})

    class Config(MixerConfig):
        """Inner width ``expansion * d_model``; the paper has head_dim 64 and state_dim 128."""

        through_sizes = frozenset({"expansion", "head_dim", "state_dim"})
        head_dim: Annotated[int, Gene((32, 64, 128))] = Field(64, ge=1)
        state_dim: Annotated[int, Gene((32, 64, 128, 256))] = Field(128, ge=1)
        expansion: Annotated[float, Gene((1.0, 2.0))] = Field(2.0, gt=0, le=8)
        num_groups: int = Field(1, ge=1)
        kernel: int = Field(4, ge=1, le=64)
        core: Literal["recurrent", "conv"] = "recurrent"
        norm_eps: float = Field(1e-5, gt=0)
        out_norm: Annotated[Literal["after_gate", "before_gate", "none"], Gene(NORMS)] = (
            "after_gate"
        )
        """Where the outputs are normed, each group of heads on its own."""
        gate_multiplier: Annotated[float, Gene(MULTIPLIERS)] = Field(1.0, gt=0)
        """Factor on z as it is projected; the others likewise."""
        x_multiplier: Annotated[float, Gene(MULTIPLIERS)] = Field(1.0, gt=0)
        b_multiplier: Annotated[float, Gene(MULTIPLIERS)] = Field(1.0, gt=0)
        c_multiplier: Annotated[float, Gene(MULTIPLIERS)] = Field(1.0, gt=0)
        dt_multiplier: Annotated[float, Gene(MULTIPLIERS)] = Field(1.0, gt=0)

        def sizes(self, d_model: int) -> Sizes:
            inner = whole_width(self.expansion, d_model)
            heads = count_heads(inner, self.head_dim, f"expansion * d_model = {inner}")
            if heads % self.num_groups:
                allowed = [g for g in range(1, heads + 1) if heads % g == 0]
                raise UserError(
                    f"num_groups={self.num_groups} does not divide num_heads={heads}; "
                    f"allowed: {allowed}"
                )
            sizes: Sizes = {
                "d_inner": inner,
                "num_groups": self.num_groups,
                "kernel": self.kernel,
            }
            if self.core == "recurrent":
                sizes["num_heads"] = heads
                sizes["head_dim"], sizes["state_dim"] = self.head_dim, self.state_dim
            return sizes

        def at_width(self, d_model: int, new: int) -> Self:
            inner = whole_width(self.expansion, d_model)
            before = count_heads(inner, self.head_dim, f"expansion * d_model = {inner}")
            heads = scaled_heads(before, d_model, new)
            # A group serves about as many heads as it did.
            wanted = heads * self.num_groups / before
            divisors = [size for size in range(1, heads + 1) if heads % size == 0]
            num_groups = min(divisors, key=lambda size: abs(size - wanted))
            changes = {"expansion": heads * self.head_dim / new, "num_groups": num_groups}
            return self.model_copy(update=changes)

        def reach(self, d_model: int) -> int | None:
            return self.kernel - 1 if self.core == "conv" else None

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            inner, keys, heads = self._widths(d_model)
            terms = {
                "query_proj": d_model * (inner + (keys if consumer else 0)),
                "out_proj": inner * d_model,
            }
            terms |= {"norm": inner} if self.out_norm != "none" else {}
            terms |= {"skip": heads} if heads else {}
            if consumer:
                return terms
            convolved = inner + 2 * keys
            terms |= {
                "feature_proj": d_model * (convolved + heads),
                "conv": convolved * self.kernel,
                "conv_bias": convolved,
            }
            return terms | ({"log_rate": heads, "dt_bias": heads} if heads else {})

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            inner, keys, heads = self._widths(d_model)
            layout = {"conv": Held("recent", (self.kernel - 1, inner + 2 * keys))}
            if heads:
                layout["kv"] = Held("recurrent", (heads, self.state_dim, self.head_dim))
            return layout

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            terms = self._token_terms(d_model, num_tokens, consumer)
            _, keys, heads = self._widths(d_model)
            if heads:
                groups, widths = keys // self.state_dim, (self.state_dim, self.head_dim)
                read = ssd.read_flops(num_tokens, *widths, heads // groups)
                terms["read"] = groups * read
                if not consumer:
                    terms["states"] = heads * ssd.states_flops(num_tokens, *widths)
            return terms

        def step_flop_terms(
            self, d_model: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            _, _, heads = self._widths(d_model)
            widths = self.state_dim, self.head_dim
            step = heads * linear_attention.step_flops(*widths, consumer=consumer)
            return self._token_terms(d_model, 1, consumer) | {"step": step}

        def _widths(self, d_model: int) -> tuple[int, int, int]:
            """Inner width; width of B and of C, and heads with a state (none in the conv core)."""
            sizes = self.sizes(d_model)
            if self.core == "conv":
                return sizes["d_inner"], 0, 0
            return sizes["d_inner"], self.num_groups * self.state_dim, sizes["num_heads"]

        def _token_terms(self, d_model: int, num_tokens: int, consumer: bool) -> dict[str, int]:
            """FLOPs of what meets each token once: the projections and the convolution."""
            params = self.param_terms(d_model, consumer=consumer)
            names = ("query_proj", "feature_proj", "conv", "out_proj")
            return matrix_flops(params, names, num_tokens)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        sizes = config.sizes(d_model)
        inner, self.head_dim = sizes["d_inner"], config.head_dim
        self.num_heads = inner // config.head_dim
        self.state_dim, self.num_groups = config.state_dim, config.num_groups
        self.recurrent = config.core == "recurrent"
        self.consumer, self.norm_eps = consumer, config.norm_eps
        keys = config.num_groups * config.state_dim if self.recurrent else 0
        self.query_widths = [inner, keys if consumer else 0]
        self.query_proj = Linear(d_model, sum(self.query_widths))
        self.norm = nn.Parameter(torch.ones(inner)) if config.out_norm != "none" else None
        self.out_proj = Linear(inner, d_model)
        if self.recurrent:
            self.skip = nn.Parameter(torch.ones(self.num_heads))
        if not consumer:
            self.conv_widths = [inner, keys, keys]
            convolved = sum(self.conv_widths)
            self.feature_widths = [convolved, self.num_heads if self.recurrent else 0]
            self.feature_proj = Linear(d_model, sum(self.feature_widths))
            bound = config.kernel**-0.5
            self.conv = nn.Parameter(torch.empty(convolved, config.kernel).uniform_(-bound, bound))
            self.conv_bias = nn.Parameter(torch.zeros(convolved))
            if self.recurrent:
                self.log_rate = nn.Parameter(torch.empty(self.num_heads).uniform_(1, 16).log())
                self.dt_bias = nn.Parameter(initial_dt_bias(self.num_heads))

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        made_BTd = self.feature_proj(x_BTD)
        past_BLd = None if state is None else state["conv"]
        activated_BTd, dt_BTN = activated_conv(made_BTd, self._conv(), self.conv_bias, past_BLd)
        if past_BLd is not None:
            advance_past(past_BLd, made_BTd[..., : past_BLd.shape[2]], span.lengths_B)
        x, k, q = activated_BTd.split(self.conv_widths, -1)
        if not self.recurrent:
            return {"x": x}
        dt_BTN = self._dt(dt_BTN)
        valid_BT = span.valid_BT
        if valid_BT is not None:
            dt_BTN = dt_BTN.where(valid_BT[..., None], 0)
        dt_BNT = dt_BTN.transpose(1, 2)
        x_BNTV, k_BGTK = split_heads(x, self.num_heads), split_heads(k, self.num_groups)
        g_BNT = dt_BNT * self._rate()[:, None]
        initial = None if state is None else state["kv"].to(g_BNT.dtype)
        states, final_BNKV = ssd.states(k_BGTK, x_BNTV, g_BNT, initial, dt_BNT)
        if state is not None:
            state["kv"].copy_(final_BNKV)
        q_BGTK = split_heads(q, self.num_groups)
        return {"x": x, "q": q_BGTK, "k": k_BGTK, "dt": dt_BNT, "g": g_BNT, "states": states}

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        z_BTI, own_q = self._query(x_BTD)
        if not self.recurrent:
            return self._out(shared["x"], z_BTI)
        q_BGTK = split_heads(F.silu(own_q), self.num_groups) if self.consumer else shared["q"]
        x_BNTV = split_heads(shared["x"], self.num_heads)
        y_BNTV = ssd.read(
            q_BGTK, shared["k"], x_BNTV, shared["g"], shared["states"], weight_BNT=shared["dt"]
        )
        return self._gated(join_heads(y_BNTV), shared["x"], z_BTI)

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        into_conv_Bd, dt_BN = self.feature_proj(x_BD).split(self.feature_widths, -1)
        convolved_Bd = causal_conv_step(into_conv_Bd, self._conv(), state["conv"]) + self.conv_bias
        x, k, q = F.silu(convolved_Bd).split(self.conv_widths, -1)
        advance_past(state["conv"], into_conv_Bd[:, None])
        if not self.recurrent:
            return {"x": x}
        dt_BN = self._dt(dt_BN)
        v_BNV = x.unflatten(-1, (self.num_heads, -1)) * dt_BN[..., None]
        g_BN1 = (dt_BN * self._rate())[..., None]
        state["kv"].copy_(linear_attention.advance(state["kv"], self._to_heads(k), v_BNV, g_BN1))
        return {"x": x, "q": q, "kv": state["kv"]}

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        z_BI, own_q = self._query(x_BD)
        if not self.recurrent:
            return self._out(shared["x"], z_BI)
        q_Bd = F.silu(own_q) if self.consumer else shared["q"]
        y_BNV = linear_attention.query(shared["kv"], self._to_heads(q_Bd))
        return self._gated(y_BNV.flatten(1), shared["x"], z_BI)

    def _query(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate, and a consumer's own queries (none, where the state is this block's)."""
        made = self.query_proj(x)
        if self.query_widths[1] == 0:
            return scaled(made, self.config.gate_multiplier), made[..., :0]
        z, q = made.split(self.query_widths, -1)
        return scaled(z, self.config.gate_multiplier), scaled(q, self.config.c_multiplier)

    def _conv(self) -> Tensor:
        """Weights of the convolution, with the factors on what it is given."""
        config = self.config
        factors = config.x_multiplier, config.b_multiplier, config.c_multiplier
        if factors == (1.0, 1.0, 1.0):
            return self.conv
        parts = self.conv.split(self.conv_widths)
        return torch.cat([scaled(*pair) for pair in zip(parts, factors, strict=True)])

    def _dt(self, raw: Tensor) -> Tensor:
        raw = scaled(precise(raw), self.config.dt_multiplier)
        return F.softplus(raw + precise(self.dt_bias))

    def _rate(self) -> Tensor:
        return -precise(self.log_rate).exp()

    def _gated(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        if self.config.out_norm == "after_gate":
            assert self.norm is not None
            groups, eps = self.num_groups, self.norm_eps
            return self.out_proj(skip_gate_norm(y, x, self.skip, z, self.norm, groups, eps))
        skipped = y + x * self.skip.repeat_interleave(self.head_dim)
        return self._out(skipped.to(z.dtype), z)

    def _to_heads(self, x_Bd: Tensor) -> Tensor:
        return ssd.to_heads(x_Bd.reshape(-1, self.num_groups, self.state_dim), self.num_heads)

    def _out(self, x: Tensor, z: Tensor) -> Tensor:
        """Gate, norm and output projection, in the order that the config says."""
        if self.config.out_norm == "before_gate":
            return self.out_proj(self._normed(x) * F.silu(z))
        gated = x * F.silu(z)
        return self.out_proj(gated if self.norm is None else self._normed(gated))

    def _normed(self, x: Tensor) -> Tensor:
        assert self.norm is not None
        groups = x.unflatten(-1, (self.num_groups, -1))
        return F.rms_norm(groups, groups.shape[-1:], None, self.norm_eps).flatten(-2) * self.norm
