"""What the mixer contract tests share: small modules away from their initialisation, and inputs."""

import types
import typing
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from archloop import registry
from archloop.blocks.base import SequenceMixer, State

D_MODEL = 64
BATCH = 2


def cases(kind: str = "mixers") -> list[tuple[str, dict[str, Any]]]:
    """Every plug-in of a kind with its default config, and each value of its closed choices."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name in registry.names(kind):
        found.append((name, {}))
        for field, info in registry.get(kind, name).Config.model_fields.items():
            for value in _choices(info.annotation):
                if value != info.default:
                    found.append((name, {field: value}))
    return found


def case_id(case: Any) -> str:
    if not isinstance(case, tuple):
        return str(case)
    name, config = case
    return "-".join([name, *(f"{k}={v}" for k, v in config.items())])


def gene_cases() -> list[tuple[str, dict[str, Any]]]:
    """Every mixer with each value of each gene that can be built at the small width."""
    found = []
    for name in registry.names("mixers"):
        config_class = registry.get("mixers", name).Config
        for field, gene in config_class.genes().items():
            for value in gene.values:
                try:
                    config_class(**{field: value}).sizes(D_MODEL)
                except ValueError:
                    continue
                found.append((name, {field: value}))
    return found


def make(
    case: tuple[str, dict[str, Any]],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    kind: str = "mixers",
    **build: Any,
) -> Any:
    """A module whose parameters have moved from their initial values, as training moves them."""
    name, config = case
    torch.manual_seed(seed)
    module = registry.get(kind, name).Config(**config).build(D_MODEL, **build)
    perturb(module, 0.3)
    return module.to(dtype).eval()


def perturb(module: torch.nn.Module, scale: float) -> None:
    """Add noise to every parameter, relative to its own size (at least 0.1)."""
    with torch.no_grad():
        for parameter in module.parameters():
            size = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
            parameter += scale * size.clamp(min=0.1) * torch.randn_like(parameter)


def inputs(
    time: int, seed: int = 1, dtype: torch.dtype = torch.float64, batch: int = BATCH
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, D_MODEL, generator=generator, dtype=torch.float64).to(dtype)


def steps(mixer: SequenceMixer, x_BTD: Tensor, state: State, start: int = 0) -> Tensor:
    """Outputs of decode steps, one token at a time."""
    outputs = []
    for t in range(x_BTD.shape[1]):
        positions_B = torch.full((x_BTD.shape[0],), start + t)
        y_BD, same = mixer.step(x_BTD[:, t], state, positions_B=positions_B)
        assert same is state
        outputs.append(y_BD)
    return torch.stack(outputs, 1)


def chunks(mixer: SequenceMixer, x_BTD: Tensor, state: State, sizes: list[int]) -> Tensor:
    """Outputs of the parallel form, continued over chunks."""
    outputs = []
    for x_BtD in x_BTD.split(sizes, 1):
        y_BtD, same = mixer(x_BtD, state)
        assert same is state
        outputs.append(y_BtD)
    return torch.cat(outputs, 1)


def error(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest magnitude of b (at least 1)."""
    assert a.shape == b.shape
    if not a.numel():
        return 0.0
    assert torch.isfinite(a).all()
    return float(((a - b).abs().max() / b.abs().max().clamp(min=1.0)).detach())


def state_error(a: State, b: State) -> float:
    return max((error(a[k].double(), b[k].double()) for k in a.tensors), default=0.0)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        return tuple(v for part in typing.get_args(annotation) for v in _choices(part))
    return ()


class WorkCounter(TorchDispatchMode):
    """Counts FLOPs of matrix products and output elements of everything else."""

    def __init__(self) -> None:
        super().__init__()
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
