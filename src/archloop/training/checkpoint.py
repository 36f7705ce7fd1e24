"""A training that can go on: weights, optimiser state and step, in memory or as safetensors.

The safetensors header carries the step, so that a checkpoint is one file, written atomically.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from archloop.stack import weights

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
    held = weights.tensors(model, constants=True)
    copies = {name: tensor.detach().clone() for name, tensor in held.items()}
    moments = {
        f"{name}/{key}": value.detach().clone()
        for name, _, _, state in _states(model, optimisers)
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    return Checkpoint(step, num_tokens, copies, moments)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimisers: list[torch.optim.Optimizer]
) -> None:
    """Put a training's state back, into a model and optimisers of the same make.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    tensors = weights.tensors(model, constants=True)
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
    held = {f"weights/{k}": v for k, v in checkpoint.weights.items()}
    held |= {f"moments/{k}": v for k, v in checkpoint.moments.items()}
    header = {
        "format": _FORMAT,
        "step": str(checkpoint.step),
        "num_tokens": str(checkpoint.num_tokens),
    }
    weights.write(held, path, header)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: the file is missing, damaged or no training's.
    """
    with ExitStack() as stack:
        try:
            file = weights.Stored(path, stack)
        except ValueError as error:
            raise ValueError(f"{error}; train from the start") from error
        header = file.header
        if header.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a training checkpoint; train from the start")
        split: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
        for key in file.shapes:
            part, _, name = key.partition("/")
            # A copy: the file is replaced by the next checkpoint while this one is in use.
            split[part][name] = file.tensor(key).clone()
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
