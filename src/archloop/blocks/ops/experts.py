"""Running a token's experts once a router has chosen them: a plain way, and three that do less.

Which is fastest hangs on how many tokens there are, and on whether the host may wait to learn how
many of them each expert got.

Shape suffixes: X tokens, D width of what experts read and write, E experts, K experts per token,
F expert width, P pairs of a token and one of its experts.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Output (X, D) of tokens (X, D), given the weights (X, K) and indices (X, K) of their experts and
the matrices of all experts: gate over up (E, 2F, D), or with squared ReLU up alone (E, F, D), and
down (E, D, F)."""

_ROW_BYTES = 16
"""Rows of a grouped product begin at multiples of this."""
_GROUPED_BY = (9, 10)
"""Major compute capabilities of cards on which PyTorch multiplies bfloat16 groups in one kernel. On
others, later ones too (12), it asks the card for the groups and multiplies them in turn."""


def dense_experts(
    x_XD: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """The plain reference: every expert on every token, weighted by 0 where it does not act.

    Static shapes, so it compiles and exports. Arguments and result as `Experts`.
    """
    mixed_XE = torch.zeros(x_XD.shape[0], gate_up.shape[0], dtype=x_XD.dtype, device=x_XD.device)
    mixed_XE = mixed_XE.scatter(1, experts_XK, weights_XK.to(x_XD.dtype))
    hidden_XEF = _activate(torch.einsum("xd,efd->xef", x_XD, gate_up), down)
    y_XED = torch.einsum("xef,edf->xed", hidden_XEF, down)
    return torch.einsum("xed,xe->xd", y_XED, mixed_XE)


def gathered_experts(
    x_XD: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Reads each token's experts by index: for few tokens. Static shapes too; see `Experts`."""
    hidden_XKF = _activate(torch.einsum("xd,xkfd->xkf", x_XD, gate_up[experts_XK]), down)
    y_XKD = torch.einsum("xkf,xkdf->xkd", hidden_XKF, down[experts_XK])
    return torch.einsum("xkd,xk->xd", y_XKD, weights_XK.to(x_XD.dtype))


def sorted_experts(
    x_XD: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Groups tokens by expert and runs one product for each expert that was hit; see `Experts`."""
    top_k = experts_XK.shape[1]
    order = experts_XK.flatten().argsort(stable=True)
    counts = torch.bincount(experts_XK.flatten(), minlength=gate_up.shape[0]).tolist()
    token = order // top_k
    groups = x_XD[token].split(counts)
    outputs = [x_XD[:0]]  # what there is of no tokens
    for expert, group_XD in enumerate(groups):
        if group_XD.shape[0]:
            hidden_XF = _activate(F.linear(group_XD, gate_up[expert]), down)
            outputs.append(F.linear(hidden_XF, down[expert]))
    weighted = torch.cat(outputs) * weights_XK.flatten()[order, None].to(x_XD.dtype)
    return torch.zeros_like(x_XD).index_add(0, token, weighted)


def grouped_experts(
    x_XD: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """As `sorted_experts`, in one product over all experts, whose counts stay on the device.

    So nothing waits for the host, and a CUDA graph holds it whatever the routing. Where
    `multiplies_groups`; elsewhere PyTorch multiplies one group after another. See `Experts`.
    """
    num_experts, top_k = gate_up.shape[0], experts_XK.shape[1]
    chosen_P, order_P = experts_XK.flatten().sort(stable=True)
    experts_E = torch.arange(num_experts, device=chosen_P.device)
    ends_E = torch.searchsorted(chosen_P, experts_E, right=True, out_int32=True)
    sorted_PD = x_XD[order_P // top_k]
    hidden_PF = _activate(F.grouped_mm(sorted_PD, gate_up.mT, offs=ends_E), down)
    y_PD = F.grouped_mm(hidden_PF, down.mT, offs=ends_E)
    # Back in the order of the tokens, each of whose sums then has one order.
    y_PD = torch.empty_like(y_PD).index_copy(0, order_P, y_PD)
    y_XKD = y_PD.view(-1, top_k, y_PD.shape[-1])
    return torch.einsum("xkd,xk->xd", y_XKD, weights_XK.to(x_XD.dtype))


def multiplies_groups(gate_up: Tensor, down: Tensor) -> bool:
    """Whether the device has one kernel for the products of all experts."""
    if not gate_up.is_cuda or gate_up.dtype != torch.bfloat16:
        return False
    if any(each.shape[-1] * each.element_size() % _ROW_BYTES for each in (gate_up, down)):
        return False
    return torch.cuda.get_device_capability(gate_up.device)[0] in _GROUPED_BY


def _activate(hidden: Tensor, down: Tensor) -> Tensor:
    """SwiGLU where there are twice as many hidden values as `down` takes, else squared ReLU."""
    if hidden.shape[-1] == down.shape[-1]:
        return F.relu(hidden).square()
    gate, up = hidden.chunk(2, -1)
    return F.silu(gate) * up
