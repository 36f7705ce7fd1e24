"""Optimisers and parameter groups: what decays, and what learns at which rate.

Learning rates carry over between widths by muP (arXiv 2203.03466, table 8): with AdamW a hidden
matrix learns at ``base_width / fan_in`` times the rate; with Muon at the square root of that, since
its update has orthogonal rows whose scale is matched to AdamW's (arXiv 2502.16982). Weight decay is
independent of these factors (arXiv 2309.14322): rate times decay is the same for all that decays.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import nn

from archloop.blocks.base import ChannelMixer, SequenceMixer

OptimiserName = Literal["adamw", "muon"]


class ParameterGroup(NamedTuple):
    """How one parameter is trained.

    Attributes:
        optimiser: muon for hidden matrices when asked for, else adamw.
        lr_factor: on the learning rate.
        decays: whether weight decay applies.
    """

    optimiser: OptimiserName
    lr_factor: float
    decays: bool


def parameter_groups(
    model: nn.Module, optimiser: OptimiserName, base_width: int | None, d_model: int
) -> dict[str, ParameterGroup]:
    """How to train each trainable parameter, by name.

    Hidden matrices are the weights of linear layers and of experts. Embeddings, norms, biases and
    whatever a mixer names in `no_decay` take no weight decay; a mixer's `lr_scale` multiplies.

    Args:
        model: a decoder, or any module that holds mixers.
        optimiser: for the hidden matrices.
        base_width: width at which the learning rate was tuned; None: no width transfer.
        d_model: the model's width. A fan-in below it (low-rank factors) counts as it, so that no
            matrix learns faster than those of full width.
    """
    no_decay, lr_scale = _declared(model)
    hidden = _hidden_matrices(model)
    # A tied embedding is also the output matrix, whose fan-in is the width.
    tied = getattr(model, "head", hidden) is None
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_hidden = name in hidden
        is_embedding = name.endswith("embedding.weight")
        uses_muon = optimiser == "muon" and is_hidden and parameter.ndim == 2
        scale = lr_scale.get(name, 1.0)
        if base_width is not None and (is_hidden or (is_embedding and tied)):
            ratio = base_width / max(parameter.shape[-1], d_model)
            scale *= ratio**0.5 if uses_muon else ratio
        decays = parameter.ndim >= 2 and not is_embedding and name not in no_decay
        groups[name] = ParameterGroup("muon" if uses_muon else "adamw", scale, decays)
    return groups


def build(
    model: nn.Module,
    groups: dict[str, ParameterGroup],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> list[torch.optim.Optimizer]:
    """One optimiser for each algorithm among the groups; each of its groups keeps ``peak_lr``."""
    parameters = dict(model.named_parameters())
    gathered: dict[ParameterGroup, list[nn.Parameter]] = {}
    for name, group in groups.items():
        gathered.setdefault(group, []).append(parameters[name])
    settings: dict[str, list[dict[str, object]]] = {"adamw": [], "muon": []}
    for group, members in gathered.items():
        rate = learning_rate * group.lr_factor
        # PyTorch multiplies the decay by the group's rate, so dividing keeps it independent.
        decay = weight_decay / group.lr_factor if group.decays and group.lr_factor else 0.0
        settings[group.optimiser].append(
            {"params": members, "lr": rate, "peak_lr": rate, "weight_decay": decay}
        )
    optimisers: list[torch.optim.Optimizer] = []
    if settings["adamw"]:
        # One kernel for all parameters, which clips too; on a CPU it would round otherwise.
        fused = next(model.parameters()).is_cuda
        optimisers.append(torch.optim.AdamW(settings["adamw"], betas=betas, fused=fused or None))
    if settings["muon"]:
        optimisers.append(torch.optim.Muon(settings["muon"], adjust_lr_fn="match_rms_adamw"))
    return optimisers


def set_lr_factor(optimisers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to a factor of its peak."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _declared(model: nn.Module) -> tuple[set[str], dict[str, float]]:
    """Full names without decay, and rate factors by full name, as the mixers declare them."""
    no_decay: set[str] = set()
    lr_scale: dict[str, float] = {}
    for prefix, mixer in _mixers(model):
        known = {name for name, _ in mixer.named_parameters()}
        dot = f"{prefix}." if prefix else ""
        no_decay |= {dot + name for name in mixer.no_decay & known}
        lr_scale |= {dot + n: scale for n, scale in mixer.lr_scale.items() if n in known}
    return no_decay, lr_scale


def _hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights of linear layers, and of experts (their last dimension is fan-in)."""
    names = {
        f"{prefix}.weight" if prefix else "weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    for prefix, mixer in _mixers(model):
        if isinstance(mixer, ChannelMixer):
            dot = f"{prefix}." if prefix else ""
            names |= {dot + n for n, p in mixer.named_parameters() if p.ndim == 3}
    return names


def _mixers(model: nn.Module) -> Iterator[tuple[str, SequenceMixer | ChannelMixer]]:
    for prefix, module in model.named_modules():
        if isinstance(module, SequenceMixer | ChannelMixer):
            yield prefix, module
