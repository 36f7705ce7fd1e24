"""Sparse mixture of experts with the routers of LFM2, Kimi Linear and Granite: dropless.

lfm2: scores ``s = sigmoid(W_r x)``; the k experts with the largest ``s + bias`` act, weighted by
their unbiased scores over ``sum + 1e-6``. After each optimiser step the bias moves against each
expert's load (arXiv 2408.15664), so no auxiliary loss bends the model.
kimi (also DeepSeek-V3, arXiv 2412.19437, and Nemotron-H): as lfm2, with float32 logits and
``sum + 1e-20``, and only experts of the best groups, those whose two largest ``s + bias`` sum
highest, are eligible.
granite: the k largest logits, weighted by their softmax (as Mixtral, arXiv 2401.04088); no bias.

A shared expert, if any, acts on every token. The routed ones may work in a narrower stream, between
two projections that neither the router nor the shared expert reads through. Routing is per token:
no capacity, so batch, chunking and padding change nothing.

Shape suffixes: X flattened tokens, D model width, E experts, K experts per token, F expert width,
L width of the stream that routed experts work in.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired, Self, TypedDict

import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from archloop.blocks.base import ChannelConfig, ChannelMixer, Gene
from archloop.blocks.channel_mixers.relu2 import ReLU2
from archloop.blocks.channel_mixers.swiglu import SwiGLU
from archloop.blocks.config import matrix_flops
from archloop.blocks.fast import RoutedExperts
from archloop.blocks.feed_forward import hidden_width
from archloop.blocks.linear import Linear
from archloop.blocks.ops.experts import (
    Experts,
    dense_experts,
    gathered_experts,
    grouped_experts,
    multiplies_groups,
    sorted_experts,
)
from archloop.blocks.ops.precision import exact
from archloop.errors import UserError


class MoESizes(TypedDict):
    """What follows from the model width, and what of the experts does not."""

    num_experts: int
    top_k: int
    d_expert: int
    d_shared: NotRequired[int]
    d_latent: NotRequired[int]


class MoE(ChannelMixer):
    """Experts of width `expansion * d_model`, of which `top_k` act on each token."""

    class Config(ChannelConfig):
        """LFM2-8B-A1B: 32 experts, top 4, expansion 0.875; LFM2-24B-A2B: 64, 4, 0.75."""

        through_sizes = frozenset({"expansion", "shared_expansion", "latent_ratio"})
        num_experts: Annotated[int, Gene((8, 16, 32))] = Field(8, ge=1)
        top_k: Annotated[int, Gene((1, 2, 4))] = Field(2, ge=1)
        expansion: Annotated[float, Gene((0.5, 0.75, 1.0))] = Field(1.0, gt=0, le=64)
        use_bias: bool = True
        normalize: bool = True
        routed_scale: float = Field(1.0, gt=0)
        bias_update_rate: float = Field(1e-3, ge=0)
        router: Annotated[Literal["lfm2", "kimi", "granite"], Gene(("lfm2", "kimi", "granite"))] = (
            "lfm2"
        )
        num_groups: int = Field(1, ge=1)
        top_groups: int = Field(1, ge=1)
        shared_expansion: Annotated[float, Gene((0.0, 0.5, 1.0))] = Field(0.0, ge=0, le=64)
        """Width of the shared expert over d_model; 0 for none."""
        shared_gate: Annotated[bool, Gene((False, True))] = False
        """Scale the output of the shared expert, if any, by a sigmoid of the input (Qwen3-Next)."""
        latent_ratio: Annotated[float, Gene((0.0, 0.25, 0.5))] = Field(0.0, ge=0, le=1)
        """Width of the stream that routed experts read and write over d_model, between a projection
        into it and one back (Nemotron 3 Super); 0: they work in the model's own."""
        activation: Annotated[Literal["swiglu", "relu2"], Gene(("swiglu", "relu2"))] = "swiglu"

        def sizes(self, d_model: int) -> MoESizes:
            if self.top_k > self.num_experts:
                raise UserError(
                    f"top_k={self.top_k} exceeds num_experts={self.num_experts}; "
                    f"allowed: 1 to {self.num_experts}"
                )
            if self.router == "granite" and not self.normalize:
                raise UserError(
                    "normalize=False is not for router='granite', whose weights are a softmax; "
                    "allowed here: True"
                )
            self._check_groups()
            d_expert = hidden_width(self.expansion, d_model)
            sizes: MoESizes = {
                "num_experts": self.num_experts,
                "top_k": self.top_k,
                "d_expert": d_expert,
            }
            if self.shared_expansion:
                sizes["d_shared"] = hidden_width(self.shared_expansion, d_model)
            if self.latent_ratio:
                sizes["d_latent"] = self._stream(d_model)
            return sizes

        def _stream(self, d_model: int) -> int:
            """Width of what routed experts read and write."""
            return hidden_width(self.latent_ratio, d_model) if self.latent_ratio else d_model

        def _check_groups(self) -> None:
            if self.num_groups == self.top_groups == 1:
                return
            if self.router != "kimi":
                raise UserError(
                    f"num_groups={self.num_groups}, top_groups={self.top_groups} need "
                    f"router='kimi', not {self.router!r}; allowed here: 1"
                )
            if self.num_experts % self.num_groups:
                every = range(1, self.num_experts + 1)
                raise UserError(
                    f"num_groups={self.num_groups} does not divide num_experts={self.num_experts}; "
                    f"allowed: {[size for size in every if self.num_experts % size == 0]}"
                )
            per_group = self.num_experts // self.num_groups
            fewest = -(-self.top_k // per_group)
            if not fewest <= self.top_groups <= self.num_groups:
                raise UserError(
                    f"top_groups={self.top_groups} must hold top_k={self.top_k} experts, "
                    f"{per_group} a group; allowed: {fewest} to {self.num_groups}"
                )

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            return self._terms(d_model, self.num_experts)

        def num_active_params(self, d_model: int) -> int:
            return sum(self._terms(d_model, self.top_k).values())

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            active = self._terms(d_model, self.top_k)
            return matrix_flops(active, active, num_tokens)

        def widened(self, d_model: int, factor: float, more: int = 0) -> Self:
            routed, shared = (
                hidden_width(hidden_width(part, d_model) * factor + more, 1) if part else 0
                for part in (self.expansion, self.shared_expansion)
            )
            # A shared expert acts on every token: widened alone, it would be another design.
            changes = {"expansion": routed / d_model, "shared_expansion": shared / d_model}
            return self.model_copy(update=changes)

        def with_experts(self, most: int) -> Self:
            num = min(most, self.num_experts)
            top_k = max(1, round(self.top_k * num / self.num_experts))
            changes = {"num_experts": num, "top_k": top_k}
            if self.num_groups > 1:
                # As many groups as there are experts to fill them, and the same share of them.
                groups = math.gcd(self.num_groups, num)
                best = math.ceil(self.top_groups * groups / self.num_groups)
                changes |= {"num_groups": groups, "top_groups": best}
            return self.model_copy(update=changes)

        def _terms(self, d_model: int, num_experts: int) -> dict[str, int]:
            """Parameters by part, of so many experts."""
            width = num_experts * hidden_width(self.expansion, d_model)
            first = 2 if self.activation == "swiglu" else 1
            stream = self._stream(d_model)
            terms = {
                "router": self.num_experts * d_model,
                "gate_up": first * stream * width,
                "down": width * stream,
            }
            if self.latent_ratio:
                terms |= {"latent_in": d_model * stream, "latent_out": stream * d_model}
            if self.shared_expansion:
                shared = hidden_width(self.shared_expansion, d_model)
                terms["shared"] = (first + 1) * d_model * shared
                terms |= {"shared_gate": d_model} if self.shared_gate else {}
            return terms

    expert_bias: Tensor
    loads: Tensor
    form: Experts | None = None
    """How to run the experts; None: as the number of tokens has it. Set by who traces a decoder."""

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__()
        self.config = config
        num_experts, d_expert = config.num_experts, hidden_width(config.expansion, d_model)
        self.router = Linear(d_model, num_experts)
        # With relu2 there is no gate, and this is the up projection alone.
        into = 2 * d_expert if config.activation == "swiglu" else d_expert
        stream = config.sizes(d_model).get("d_latent", d_model)
        self.gate_up = nn.Parameter(torch.empty(num_experts, into, stream))
        self.down = nn.Parameter(torch.empty(num_experts, stream, d_expert))
        self.register_buffer(
            "expert_bias",
            torch.zeros(num_experts, dtype=torch.float32),
            persistent=config.use_bias,
        )
        self.register_buffer(
            "loads", torch.zeros(num_experts, dtype=torch.float32), persistent=False
        )
        nn.init.normal_(self.gate_up, std=stream**-0.5)
        nn.init.normal_(self.down, std=d_expert**-0.5)
        latent = config.latent_ratio > 0
        self.latent_in = Linear(d_model, stream) if latent else None
        self.latent_out = Linear(stream, d_model) if latent else None
        self.shared: ChannelMixer | None = None
        if config.shared_expansion:
            ffn = SwiGLU if config.activation == "swiglu" else ReLU2
            self.shared = ffn.Config(expansion=config.shared_expansion).build(d_model)
        gated = config.shared_gate and config.shared_expansion
        self.shared_gate = Linear(d_model, 1) if gated else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = self.routed(x_BTD)
        if self.shared is None:
            return y_BTD
        shared_BTD = self.shared(x_BTD)
        if self.shared_gate is not None:
            shared_BTD = shared_BTD * self.shared_gate(x_BTD).sigmoid()
        return y_BTD + shared_BTD

    def routed(self, x_BTD: Tensor) -> Tensor:
        """The routed experts' part of the output."""
        x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
        weights_XK, experts_XK = self.route(x_XD)
        if self.training:
            self._count(experts_XK)
        run = self.form or self._form(x_XD.shape[0])
        x_XL = x_XD if self.latent_in is None else self.latent_in(x_XD)
        y_XL = run(x_XL, weights_XK, experts_XK, self.gate_up, self.down)
        y_XD = y_XL if self.latent_out is None else self.latent_out(y_XL)
        return y_XD.view_as(x_BTD)

    def fast_form(self) -> RoutedExperts | None:
        config = self.config
        grouped = config.top_groups < config.num_groups
        if config.router != "lfm2" or config.activation != "swiglu" or grouped:
            return None
        if self.shared is not None or self.latent_in is not None:
            return None
        return RoutedExperts(
            self.router.weight,
            self.expert_bias if config.use_bias else torch.zeros_like(self.expert_bias),
            self.gate_up,
            self.down,
            config.top_k,
            config.normalize,
            config.routed_scale,
        )

    @property
    def asks_host(self) -> bool:
        # One product an expert has as many rows as the router chose.
        return not multiplies_groups(self.gate_up, self.down)

    def _form(self, num_tokens: int) -> Experts:
        """How to run the experts; compiled, exported or captured in a CUDA graph, shapes cannot
        depend on the routing.
        """
        if not torch.compiler.is_compiling():
            if num_tokens > 1 and multiplies_groups(self.gate_up, self.down):
                return grouped_experts
            # Asked here alone: the compiler cannot trace the question.
            if not (self.down.is_cuda and torch.cuda.is_current_stream_capturing()):
                return gathered_experts if num_tokens == 1 else sorted_experts
        # Gathering copies the weights of each token's experts. For many tokens these copies are
        # larger than all experts together, so every expert runs on every token.
        few = num_tokens * self.config.top_k <= self.config.num_experts
        return gathered_experts if few else dense_experts

    def route(self, x_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of the experts that act on each token, both (X, K)."""
        config = self.config
        if config.router == "granite":
            logits_XE = self.router(x_XD)
            logits_XE = logits_XE.to(torch.promote_types(logits_XE.dtype, torch.float32))
            top_XK, experts_XK = logits_XE.topk(config.top_k, dim=-1)
            return top_XK.softmax(-1) * config.routed_scale, experts_XK
        scores_XE, eps = self._scores(x_XD)
        ranked_XE = scores_XE + self.expert_bias if config.use_bias else scores_XE
        if config.top_groups < config.num_groups:
            ranked_XE = self._in_best_groups(ranked_XE)
        experts_XK = ranked_XE.topk(config.top_k, dim=-1).indices
        weights_XK = scores_XE.gather(-1, experts_XK)
        if config.normalize:
            weights_XK = weights_XK / (weights_XK.sum(-1, keepdim=True) + eps)
        return weights_XK * config.routed_scale, experts_XK

    def _scores(self, x_XD: Tensor) -> tuple[Tensor, float]:
        """Sigmoid scores, and what keeps their normalisation from dividing by zero."""
        if self.config.router == "lfm2":
            return self.router(x_XD).sigmoid(), 1e-6
        dtype = torch.promote_types(x_XD.dtype, torch.float32)
        with exact(x_XD):
            logits_XE = F.linear(x_XD.to(dtype), self.router.weight.to(dtype))
        return logits_XE.sigmoid(), 1e-20

    def _in_best_groups(self, ranked_XE: Tensor) -> Tensor:
        """-inf outside the groups whose two best experts rank highest together."""
        num_groups = self.config.num_groups
        groups_XGe = ranked_XE.reshape(ranked_XE.shape[0], num_groups, -1)
        best_XG = groups_XGe.topk(min(2, groups_XGe.shape[-1]), dim=-1).values.sum(-1)
        chosen = best_XG.topk(self.config.top_groups, dim=-1).indices
        allowed_XG = torch.zeros_like(best_XG, dtype=torch.bool).scatter(-1, chosen, True)
        return groups_XGe.masked_fill(~allowed_XG[..., None], -torch.inf).flatten(-2)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Move each expert's bias by a fixed step towards the mean load, summed over ranks."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.loads)
        if self.config.use_bias and self.config.router != "granite":
            direction_E = torch.sign(self.loads.mean() - self.loads)
            self.expert_bias += self.config.bias_update_rate * direction_E
        self.loads.zero_()

    @torch.no_grad()
    def _count(self, experts_XK: Tensor) -> None:
        counts = torch.bincount(experts_XK.flatten(), minlength=self.loads.shape[0])
        self.loads += counts.to(self.loads.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # The bias must keep float32 when the model is cast: its updates are below bf16's steps.
        bias = self.expert_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        moved = self.expert_bias
        if moved.dtype != torch.float32:
            kept = torch.zeros_like(moved, dtype=torch.float32) if bias.is_meta else bias
            self.expert_bias = kept.to(moved.device)
            self.loads = self.loads.float()
        return self
