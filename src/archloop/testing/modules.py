"""Small modules of a plug-in, away from their initialisation, and what is compared of them.

A case is a plug-in's name and settings.

Shape suffixes: B batch, T time, D model width.
"""

import types
import typing
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from archloop import registry
from archloop.blocks import checks
from archloop.blocks.base import SequenceMixer, State

Case = tuple[str, dict[str, Any]]

D_MODEL = 64
BATCH = 2
EXACT = 1e-9
"""Largest relative difference in float64 between ways to compute the same."""


def cases(kind: str, names: Sequence[str]) -> list[Case]:
    """Plug-ins of a kind with their default configs, and each value of their closed choices."""
    found: list[Case] = []
    for name in names:
        found.append((name, {}))
        for field, info in registry.get(kind, name).Config.model_fields.items():
            for value in _choices(info.annotation):
                if value != info.default:
                    found.append((name, {field: value}))
    return found


def case_id(case: Any) -> str:
    """A case as a test's name shows it."""
    if not isinstance(case, tuple):
        return str(case)
    name, config = case
    return "-".join([name, *(f"{k}={v}" for k, v in config.items())])


def gene_cases(names: Sequence[str]) -> list[Case]:
    """Mixers with each value of each gene that can be built at the small width."""
    found: list[Case] = []
    for name in names:
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
    case: Case,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    kind: str = "mixers",
    **build: Any,
) -> Any:
    """A module whose parameters have moved from their initial values, as training moves them."""
    name, config = case
    torch.manual_seed(seed)
    module = registry.get(kind, name).Config(**config).build(D_MODEL, **build)
    checks.move_parameters(module, 0.3)
    return module.to(dtype).eval()


def init_state(
    mixer: SequenceMixer,
    max_context: int,
    batch: int = BATCH,
    dtype: torch.dtype = torch.float64,
) -> State:
    """An empty state."""
    return mixer.init_state(batch, max_context, dtype)


def inputs(
    time: int, seed: int = 1, dtype: torch.dtype = torch.float64, batch: int = BATCH
) -> Tensor:
    """Normally distributed inputs (B, T, D) at the small width."""
    return checks.random_inputs(time, D_MODEL, dtype, batch, seed)


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
    """As `error`, the largest over all tensors of two states."""
    return max((error(a[k].double(), b[k].double()) for k in a.tensors), default=0.0)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        return tuple(v for part in typing.get_args(annotation) for v in _choices(part))
    return ()
