"""Sparse mixture of SwiGLU experts with the LFM2-MoE router: dropless, balanced without a loss.

Scores ``s = sigmoid(W_r x)``; the k experts with the largest ``s + bias`` act, weighted by their
unbiased scores. After each optimiser step the bias moves against each expert's load
(arXiv 2408.15664), so no auxiliary loss bends the model. Routing is per token: no capacity, so
batch, chunking and padding change nothing.

Shape suffixes: X flattened tokens, D model width, E experts, K experts per token, F expert width.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from archloop.blocks.base import ChannelConfig, ChannelMixer, Gene
from archloop.blocks.channel_mixers.swiglu import hidden_width
from archloop.blocks.linear import Linear


class MoE(ChannelMixer):
    """Experts of width `expansion * d_model`, of which `top_k` act on each token."""

    class Config(ChannelConfig):
        """LFM2-8B-A1B: 32 experts, top 4, expansion 0.875; LFM2-24B-A2B: 64, 4, 0.75."""

        num_experts: Annotated[int, Gene((8, 16, 32))] = Field(8, ge=1)
        top_k: Annotated[int, Gene((1, 2, 4))] = Field(2, ge=1)
        expansion: Annotated[float, Gene((0.5, 0.75, 1.0), scale="ratio")] = Field(1.0, gt=0)
        use_bias: bool = True
        normalize: bool = True
        routed_scale: float = Field(1.0, gt=0)
        bias_update_rate: float = Field(1e-3, ge=0)

        def sizes(self, d_model: int) -> dict[str, int]:  # noqa: D102
            if self.top_k > self.num_experts:
                raise ValueError(
                    f"top_k={self.top_k} exceeds num_experts={self.num_experts}; "
                    f"allowed: 1 to {self.num_experts}"
                )
            d_expert = hidden_width(self.expansion, d_model)
            return {"num_experts": self.num_experts, "top_k": self.top_k, "d_expert": d_expert}

        def num_params(self, d_model: int, *, consumer: bool = False) -> int:  # noqa: D102
            d_expert = hidden_width(self.expansion, d_model)
            return self.num_experts * (3 * d_model * d_expert + d_model)

        def num_active_params(self, d_model: int) -> int:  # noqa: D102
            d_expert = hidden_width(self.expansion, d_model)
            return self.top_k * 3 * d_model * d_expert + self.num_experts * d_model

        def prefill_flops(  # noqa: D102
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> int:
            return num_tokens * 2 * self.num_active_params(d_model)

    expert_bias: Tensor
    loads: Tensor

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__()
        self.config = config
        num_experts, d_expert = config.num_experts, hidden_width(config.expansion, d_model)
        self.router = Linear(d_model, num_experts)
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * d_expert, d_model))
        self.down = nn.Parameter(torch.empty(num_experts, d_model, d_expert))
        self.register_buffer("expert_bias", torch.zeros(num_experts, dtype=torch.float32))
        self.register_buffer(
            "loads", torch.zeros(num_experts, dtype=torch.float32), persistent=False
        )
        nn.init.normal_(self.gate_up, std=d_model**-0.5)
        nn.init.normal_(self.down, std=d_expert**-0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:  # noqa: D102
        x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
        weights_XK, experts_XK = self.route(x_XD)
        if self.training:
            self._count(experts_XK)
        if torch.compiler.is_compiling() or x_XD.shape[0] == 1:
            y_XD = gathered_experts(x_XD, weights_XK, experts_XK, self.gate_up, self.down)
        else:
            y_XD = sorted_experts(x_XD, weights_XK, experts_XK, self.gate_up, self.down)
        return y_XD.view_as(x_BTD)

    def route(self, x_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of the experts that act on each token, both (X, K)."""
        scores_XE = self.router(x_XD).sigmoid()
        ranked_XE = scores_XE + self.expert_bias if self.config.use_bias else scores_XE
        experts_XK = ranked_XE.topk(self.config.top_k, dim=-1).indices
        weights_XK = scores_XE.gather(-1, experts_XK)
        if self.config.normalize:
            weights_XK = weights_XK / (weights_XK.sum(-1, keepdim=True) + 1e-6)
        return weights_XK * self.config.routed_scale, experts_XK

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Move each expert's bias by a fixed step towards the mean load, summed over ranks."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.loads)
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
        super()._apply(fn, recurse)
        moved = self.expert_bias
        if moved.dtype != torch.float32:
            kept = torch.zeros_like(moved, dtype=torch.float32) if bias.is_meta else bias
            self.expert_bias = kept.to(moved.device)
            self.loads = self.loads.float()
        return self


def dense_experts(
    x_XD: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """The plain reference: every expert on every token, weighted by 0 where it does not act."""
    mixed_XE = torch.zeros(x_XD.shape[0], gate_up.shape[0], dtype=x_XD.dtype, device=x_XD.device)
    mixed_XE = mixed_XE.scatter(1, experts_XK, weights_XK.to(x_XD.dtype))
    gate_XEF, up_XEF = torch.einsum("xd,efd->xef", x_XD, gate_up).chunk(2, -1)
    y_XED = torch.einsum("xef,edf->xed", F.silu(gate_XEF) * up_XEF, down)
    return torch.einsum("xed,xe->xd", y_XED, mixed_XE)


def gathered_experts(
    x_XD: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Reads each token's experts by index: static shapes, so it compiles and exports."""
    gate_XKF, up_XKF = torch.einsum("xd,xkfd->xkf", x_XD, gate_up[experts_XK]).chunk(2, -1)
    y_XKD = torch.einsum("xkf,xkdf->xkd", F.silu(gate_XKF) * up_XKF, down[experts_XK])
    return torch.einsum("xkd,xk->xd", y_XKD, weights_XK.to(x_XD.dtype))


def sorted_experts(
    x_XD: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Groups tokens by expert and runs one matrix product an expert that was hit."""
    top_k = experts_XK.shape[1]
    order = experts_XK.flatten().argsort(stable=True)
    counts = torch.bincount(experts_XK.flatten(), minlength=gate_up.shape[0]).tolist()
    token = order // top_k
    groups = x_XD[token].split(counts)
    outputs = []
    for expert, group_XD in enumerate(groups):
        if group_XD.shape[0]:
            gate_XF, up_XF = F.linear(group_XD, gate_up[expert]).chunk(2, -1)
            outputs.append(F.linear(F.silu(gate_XF) * up_XF, down[expert]))
    weighted = torch.cat(outputs) * weights_XK.flatten()[order, None].to(x_XD.dtype)
    return torch.zeros_like(x_XD).index_add(0, token, weighted)
