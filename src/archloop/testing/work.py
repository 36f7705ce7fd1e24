"""The work that a module really does, operation by operation."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


class WorkCounter(TorchDispatchMode):
    """Counts FLOPs of matrix products and output elements of everything else."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.matmul_flops = 0
        self.elementwise = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in flop_registry and func._can_decompose():
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        if "scaled_dot_product" in str(func):  # the CPU kernel is missing from the registry
            self.matmul_flops += sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)
        elif func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket]
            self.matmul_flops += count(*args, **(kwargs or {}), out_val=out)
        else:
            tensors = out if isinstance(out, tuple) else (out,)
            self.elementwise += 2 * sum(t.numel() for t in tensors if isinstance(t, Tensor))
        return out
