"""Mamba-3 (arXiv 2603.15569): trapezoidal steps, rotating states, one or several ranks.

``S_t = a_t S_{t-1} + (1 - l_t) dt_t a_t K_{t-1} V_{t-1}^T + l_t dt_t K_t V_t^T``,
``a = exp(A dt)``, l a gate: the trapezoid rule, where Mamba-2 has Euler's. Complex states are pairs
of real ones: keys B and queries C turn by a growing angle, ``phi_t = phi_{t-1} + pi dt tanh(w)``.
B and C are normalised, then take a bias per head; there is no short convolution. With rank R > 1
(MIMO) a token has R keys and queries, values ``x * mimo_x``, and outputs that ``mimo_o`` combines.

The parallel form is that of a plain decaying state: with its share of the next step,
``n_t = dt_{t+1} (1 - l_{t+1})``, a token adds ``(l_t dt_t + n_t) K_t V_t^T``, of which its own
reading leaves out n_t. Rotated pairs are (i, i + S) here; B, C, norms and biases are symmetric in
that order. A consumer brings a C, D, gate and output of its own.

Shape suffixes: B batch, T time, D model width, I inner width, N heads, R ranks, K state width,
V head width, S angles.
"""

import math
from typing import Annotated, Literal, Self, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import Features, Gene, Held, MixerConfig, SharingMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.linear import Linear
from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops import ranked_ssd, triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import chunk_size, join, split
from archloop.blocks.ops.precision import KeepsFloat32, precise
from archloop.blocks.ops.time_steps import initial_dt_bias
from archloop.blocks.widths import count_heads, scaled_heads, whole_width
from archloop.errors import UserError


class Sizes(TypedDict):
    """What follows from the model width."""

    num_heads: int
    head_dim: int
    state_dim: int
    rank: int
    num_angles: int


class Mamba3(KeepsFloat32, SharingMixer):
    """Matrix state of K by V per head in at least float32, the last key and value, the angles."""

    float32_params = frozenset({"dt_bias"})
    no_decay = frozenset({"b_bias", "c_bias"})

    class Config(MixerConfig):
        """Inner width ``expansion * d_model``; `rank` 1 is SISO, above it MIMO."""

        through_sizes = frozenset({"expansion", "rope_fraction"})
        head_dim: Annotated[int, Gene((32, 64, 128))] = Field(64, ge=1)
        state_dim: Annotated[int, Gene((32, 64, 128))] = Field(64, ge=4, multiple_of=4)
        expansion: Annotated[float, Gene((1.0, 2.0))] = Field(2.0, gt=0, le=8)
        rank: Annotated[Literal[1, 2, 4], Gene((1, 2, 4))] = 1
        rope_fraction: float = Field(0.5, gt=0, le=1)
        """Share of the state that rotates."""
        norm_eps: float = Field(1e-5, gt=0)
        decay_floor: float = Field(1e-4, gt=0, le=1)
        """Least speed of decay; a rate of 0 gives 1."""

        def sizes(self, d_model: int) -> Sizes:
            inner = whole_width(self.expansion, d_model)
            heads = count_heads(inner, self.head_dim, f"expansion * d_model = {inner}")
            # A fraction such as 2/196 is not exact in binary: the product may fall just below the
            # whole number that is meant, and would be rounded down.
            angles = int(self.state_dim * self.rope_fraction * (1 + 1e-12)) // 2
            if not angles:
                raise UserError(
                    f"rope_fraction={self.rope_fraction} rotates nothing of "
                    f"state_dim={self.state_dim}; allowed: at least {2 / self.state_dim}"
                )
            return {
                "num_heads": heads,
                "head_dim": self.head_dim,
                "state_dim": self.state_dim,
                "rank": self.rank,
                "num_angles": angles,
            }

        def at_width(self, d_model: int, new: int) -> Self:
            heads = scaled_heads(self.sizes(d_model)["num_heads"], d_model, new)
            return self.model_copy(update={"expansion": heads * self.head_dim / new})

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            sizes = self.sizes(d_model)
            heads, angles = sizes["num_heads"], sizes["num_angles"]
            inner, keys = heads * self.head_dim, self.rank * self.state_dim
            terms = {
                "query_proj": d_model * (inner + keys),
                "c_norm": self.state_dim,
                "c_bias": heads * keys,
                "skip": heads,
                "out_proj": inner * d_model,
            }
            ranked = dict.fromkeys(("mimo_z", "mimo_o", "mimo_x"), inner * self.rank)
            if self.rank == 1:
                ranked = {}
            if consumer:
                ranked.pop("mimo_x", None)
                return terms | ranked
            made = {
                "feature_proj": d_model * (inner + keys + 3 * heads + angles),
                "b_norm": self.state_dim,
                "b_bias": heads * keys,
                "dt_bias": heads,
            }
            return terms | ranked | made

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            sizes = self.sizes(d_model)
            shapes = {
                "kv": (self.state_dim, self.head_dim),
                "angle": (sizes["num_angles"],),
                "k": (self.rank, self.state_dim),
                "v": (self.head_dim,),
            }
            heads = sizes["num_heads"]
            return {name: Held("recurrent", (heads, *shape)) for name, shape in shapes.items()}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            heads, widths = self.sizes(d_model)["num_heads"], (self.state_dim, self.head_dim)
            terms = self._projections(d_model, num_tokens, consumer)
            terms["read"] = heads * ranked_ssd.read_flops(num_tokens, self.rank, *widths)
            # The own part of each token's write is added apart from the others (see `read`).
            terms["own"] = heads * num_tokens * 2 * self.rank**2 * sum(widths)
            if not consumer:
                states = ranked_ssd.states_flops(num_tokens, self.rank, *widths)
                terms["states"] = heads * states
            return terms

        def step_flop_terms(
            self, d_model: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            cells = self.sizes(d_model)["num_heads"] * self.state_dim * self.head_dim
            per_cell = 2 * self.rank if consumer else 6 * self.rank + 3
            return self._projections(d_model, 1, consumer) | {"step": cells * per_cell}

        def _projections(self, d_model: int, num_tokens: int, consumer: bool) -> dict[str, int]:
            params = self.param_terms(d_model, consumer=consumer)
            return matrix_flops(params, ("query_proj", "feature_proj", "out_proj"), num_tokens)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        sizes = config.sizes(d_model)
        self.num_heads = sizes["num_heads"]
        self.num_angles, rank, width = sizes["num_angles"], config.rank, config.state_dim
        inner = self.num_heads * config.head_dim
        self.query_widths = [inner, rank * width]
        self.query_proj = Linear(d_model, sum(self.query_widths))
        self.c_norm = RMSNorm(width, config.norm_eps)
        self.c_bias = nn.Parameter(torch.ones(self.num_heads, rank, width))
        self.skip = nn.Parameter(torch.ones(self.num_heads))
        self.out_proj = Linear(inner, d_model)
        shape = (self.num_heads, rank, config.head_dim)
        if rank > 1:
            self.mimo_z = nn.Parameter(torch.ones(shape))
            self.mimo_o = nn.Parameter(torch.full(shape, 1 / rank))
        if consumer:
            return
        heads = self.num_heads
        self.feature_widths = [inner, rank * width, heads, heads, heads, self.num_angles]
        self.feature_proj = Linear(d_model, sum(self.feature_widths))
        self.b_norm = RMSNorm(width, config.norm_eps)
        self.b_bias = nn.Parameter(torch.ones(heads, rank, width))
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        if rank > 1:
            self.mimo_x = nn.Parameter(torch.full(shape, 1 / rank))

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        x, b, dt, g, trap, turn = self._features(x_BTD, span.valid_BT)
        angle = total_angle(turn, None if state is None else state["angle"])
        k_BNTRK = self._rotated(b, self.b_norm, self.b_bias, angle)
        v_BNTRV = self._ranked(x)
        share, own_share = dt * (1 - trap), dt * trap
        next_share = F.pad(share[:, :, 1:], (0, 1))
        scaled = v_BNTRV * (own_share + next_share)[..., None, None].to(x.dtype)
        initial = None
        if state is not None:
            past = self._past(state)
            initial = state["kv"] + share[:, :, 0, None, None] * past
        states, final = ranked_ssd.states(k_BNTRK, scaled, g, initial)
        if state is not None:
            self._keep(state, span, angle, k_BNTRK, x)
            state["kv"].copy_(final)
        return {
            "angle": angle,
            "k": k_BNTRK,
            "v": v_BNTRV,
            "scaled": scaled,
            "own": own_share,
            "g": g,
            "states": states,
        }

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        z, c = self.query_proj(x_BTD).split(self.query_widths, -1)
        q_BNTRK = self._rotated(c, self.c_norm, self.c_bias, shared["angle"])
        # What a token writes has two parts: its own share of the step and, by the trapezoid rule,
        # a share of the next step. Its own output may contain the first only. Subtracting the
        # second afterwards would cancel digits where the next step is far longer, so the product
        # below leaves the diagonal out, and the own part is added exactly after it.
        added = shared["k"], shared["scaled"], shared["g"], shared["states"]
        y = ranked_ssd.read(q_BNTRK, *added, diagonal=-1)
        # The diagonal (a token's query with its own write) and the skip: products of small ranks.
        if self.config.rank == 1:
            own = (q_BNTRK * shared["k"]).sum(-1, keepdim=True)
        else:
            own = q_BNTRK @ shared["k"].transpose(-1, -2)
        eye = torch.eye(self.config.rank, dtype=own.dtype, device=own.device)
        factor = self.skip[:, None, None, None] * eye + shared["own"][..., None, None] * own
        v, factor = shared["v"], factor.to(own.dtype)
        y = torch.addcmul(y, factor, v) if self.config.rank == 1 else y + factor @ v
        return self._out(x_BTD, y, z)

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        x, b, *rest = self._features(x_BD[:, None], None)
        dt, g, trap, turn = (part[:, :, 0] for part in rest)
        angle = (state["angle"] + turn).remainder(2 * math.pi)
        k_BN1RK = self._rotated(b, self.b_norm, self.b_bias, angle[:, :, None])
        k_BNRK, v_BNRV = precise(k_BN1RK[:, :, 0]), precise(self._ranked(x)[:, :, 0])
        past = self._past(state)
        share = (dt * (1 - trap))[..., None, None]
        kv = g.exp()[..., None, None] * (state["kv"] + share * past)
        kv = kv + (dt * trap)[..., None, None] * (k_BNRK.transpose(-1, -2) @ v_BNRV)
        for name, value in (("kv", kv), ("angle", angle), ("k", k_BNRK), ("v", x[:, :, 0])):
            state[name].copy_(value)
        return {"angle": angle, "v": v_BNRV, "kv": state["kv"]}

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        z, c = self.query_proj(x_BD[:, None]).split(self.query_widths, -1)
        angle_BN1S = shared["angle"][:, :, None]
        q_BNRK = self._rotated(c, self.c_norm, self.c_bias, angle_BN1S)[:, :, 0]
        q_BNRK = precise(q_BNRK)
        y = q_BNRK @ shared["kv"].to(q_BNRK.dtype) + precise(self.skip)[:, None, None] * shared["v"]
        return self._out(x_BD[:, None], y[:, :, None], z)[:, 0]

    def _features(self, x_BTD: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, ...]:
        """Values (B, N, T, V), keys before norm and rotation (B, T, d), and per head and token:
        dt, log-decay, trapezoid gate (B, N, T) and turn (B, N, T, S).
        """
        parts = self.feature_proj(x_BTD).split(self.feature_widths, -1)
        x, b = parts[:2]
        dt, rate, trap, turn = (precise(part) for part in parts[2:])
        dt_BTN = F.softplus(dt + precise(self.dt_bias))
        if valid_BT is not None:
            dt_BTN = dt_BTN * valid_BT[..., None]
        dt_BNT = dt_BTN.transpose(1, 2)
        # 1 + x above 0 and 1/(1 - x) below: positive, and slow to reach 0.
        speed_BTN = torch.where(rate >= 0, 1 + rate, 1 / (1 - rate.clamp(max=0)))
        speed_BNT = speed_BTN.clamp(min=self.config.decay_floor).transpose(1, 2)
        turn_BNTS = math.pi * turn.tanh()[:, None] * dt_BNT[..., None]
        x_BNTV = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        gate_BNT = trap.sigmoid().transpose(1, 2)
        return x_BNTV, b, dt_BNT, -speed_BNT * dt_BNT, gate_BNT, turn_BNTS

    def _rotated(
        self, x_BTd: Tensor, norm: RMSNorm, bias_NRK: Tensor, angle_BNTS: Tensor
    ) -> Tensor:
        """Keys or queries (B, N, T, R, K)."""
        x_BTRK = x_BTd.unflatten(-1, (self.config.rank, -1))
        return biased_rotation(norm(x_BTRK), bias_NRK, angle_BNTS)

    def _ranked(self, x_BNTV: Tensor) -> Tensor:
        """One value per rank, (B, N, T, R, V)."""
        x_BNT1V = x_BNTV[..., None, :]
        return x_BNT1V if self.config.rank == 1 else x_BNT1V * self.mimo_x[:, None]

    def _past(self, state: State) -> Tensor:
        """What the last token's key and value would add to the state, (B, N, K, V)."""
        v_BNRV = precise(self._ranked(state["v"][:, :, None])[:, :, 0])
        return state["k"].to(v_BNRV.dtype).transpose(-1, -2) @ v_BNRV

    def _keep(self, state: State, span: Span, angle: Tensor, k: Tensor, x: Tensor) -> None:
        """Remember the angle, key and value of each row's last real token."""
        last: list[tuple[str, Tensor]] = [("angle", angle), ("k", k), ("v", x)]
        for name, values in last:
            if span.lengths_B is None:
                state[name].copy_(values[:, :, -1])
                continue
            held = torch.cat([state[name][:, :, None], values.to(state[name].dtype)], 2)
            rows_B = torch.arange(held.shape[0], device=held.device)
            state[name].copy_(held[rows_B, :, span.lengths_B])

    def _out(self, x_BTD: Tensor, y_BNTRV: Tensor, z_BTI: Tensor) -> Tensor:
        z_BTNV = z_BTI.unflatten(-1, (self.num_heads, -1))
        y_BTNRV = y_BNTRV.transpose(1, 2).to(x_BTD.dtype)
        if self.config.rank == 1:
            gated = y_BTNRV[..., 0, :] * F.silu(z_BTNV)
        else:
            gates = F.silu(z_BTNV[..., None, :] * self.mimo_z)
            gated = (y_BTNRV * gates * self.mimo_o).sum(-2)
        return self.out_proj(gated.flatten(-2))


def total_angle(turn_BNTS: Tensor, start_BNS: Tensor | None) -> Tensor:
    """Angles after each token, from 0 to 2 pi.

    Sums over chunks are float64, since a rounding error of a long sum is an error of the angle;
    sums in two levels also keep a GPU busy.
    """
    time = turn_BNTS.shape[2]
    within = split(turn_BNTS, chunk_size(time, 64)).cumsum(3)
    total_BNnS = within[:, :, :, -1].double()
    before_BNnS = total_BNnS.cumsum(2) - total_BNnS
    if start_BNS is not None:
        before_BNnS = before_BNnS + start_BNS[:, :, None]
    before_BNnS = before_BNnS.remainder(2 * math.pi).to(turn_BNTS.dtype)
    return join(within + before_BNnS[:, :, :, None], time).remainder(2 * math.pi)


def biased_rotation(x_BTRK: Tensor, bias_NRK: Tensor, angle_BNTS: Tensor) -> Tensor:
    """Each head's bias on a shared vector, then its rotation: (B, N, T, R, K)."""
    if triton_kernels.usable(angle_BNTS) and x_BTRK.shape[1] > 1:
        from archloop.blocks.ops.gpu.rotation import BiasedRotation

        rotated: Tensor = apply(BiasedRotation, x_BTRK, bias_NRK, angle_BNTS)
        return rotated
    return rotate(x_BTRK[:, None] + bias_NRK[:, None], angle_BNTS)


def rotate(x_RK: Tensor, angle_S: Tensor) -> Tensor:
    """Turns the pairs (i, i + S), i < S, of each rank (..., R, K) by the angles (..., S)."""
    num = angle_S.shape[-1]
    cos, sin = (part.to(x_RK.dtype)[..., None, :] for part in (angle_S.cos(), angle_S.sin()))
    first, second, rest = x_RK.split([num, num, x_RK.shape[-1] - 2 * num], -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)
