"""A training that can go on: weights, optimiser state and step, in memory or as safetensors.

The safetensors header carries the step, so that a checkpoint is one file, written atomically.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from archloop.files import write_atomic
from archloop.stack.tensors import leaves

_FORMAT = "archloop-training-1"


class Checkpoint(NamedTuple):
    """Everything that a training needs to continue bit by bit.

    Attributes:
        step: optimiser steps taken.
        num_tokens: tokens seen.
        weights: parameters and buffers by name.
        moments: optimiser state by ``<parameter name>/<key>``.
    """

    step: int
    num_tokens: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def capture(
    model: nn.Module, optimisers: list[torch.optim.Optimizer], step: int, num_tokens: int
) -> Checkpoint:
    """A copy of a training's state."""
    weights = {name: tensor.detach().clone() for name, tensor, *_ in leaves(model)}
    moments = {
        f"{name}/{key}": value.detach().clone()
        for name, _, _, state in _states(model, optimisers)
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    return Checkpoint(step, num_tokens, weights, moments)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimisers: list[torch.optim.Optimizer]
) -> None:
    """Put a training's state back, into a model and optimisers of the same make.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    tensors = {name: tensor for name, tensor, *_ in leaves(model)}
    if {n: t.shape for n, t in tensors.items()} != {
        n: t.shape for n, t in checkpoint.weights.items()
    }:
        raise ValueError("the checkpoint is of another model; train this one from the start")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(checkpoint.weights[name])
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in checkpoint.moments.items():
        name, _, field = key.rpartition("/")
        moments.setdefault(name, {})[field] = value
    for name, parameter, group, state in _states(model, optimisers):
        state.clear()
        for field, value in moments.get(name, {}).items():
            # The count of steps stays on the host, unless a kernel on the GPU reads it.
            on_host = field == "step" and not group.get("fused")
            state[field] = value.to("cpu" if on_host else parameter.device, copy=True)


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; the file is whole or absent."""
    tensors = {f"weights/{k}": v.contiguous() for k, v in checkpoint.weights.items()}
    tensors |= {f"moments/{k}": v.contiguous() for k, v in checkpoint.moments.items()}
    header = {
        "format": _FORMAT,
        "step": str(checkpoint.step),
        "num_tokens": str(checkpoint.num_tokens),
    }
    write_atomic(path, save(tensors, header))


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read checkpoint {path}: {error}; train from the start") from error
    if header.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a training checkpoint; train from the start")
    split: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        split[kind][name] = value
    return Checkpoint(int(header["step"]), int(header["num_tokens"]), **split)


def _states(
    model: nn.Module, optimisers: list[torch.optim.Optimizer]
) -> Iterator[tuple[str, nn.Parameter, dict[str, Any], dict[str, object]]]:
    """Each trained parameter with its name, its group's settings and its mutable state."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                yield names[parameter], parameter, group, optimiser.state[parameter]
