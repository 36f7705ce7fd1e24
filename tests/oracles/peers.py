"""What the oracle tests of mixers share: peers that compute in float64 throughout, and errors.

flash-linear-attention and transformers cast to float32 inside, which would hide any error of ours
below 1e-6. So their source is read with every such cast widened to float64, and nothing else
changed; what is left to compare is the mathematics. fla's packages also import Triton kernels,
which its naive functions do not need: those are loaded from their files.
"""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

EXACT = 1e-9
"""Of max|ref|."""


@cache
def naive(op: str) -> ModuleType:
    """``fla/ops/<op>/naive.py`` in float64."""
    spec = importlib.util.find_spec("fla")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(next(iter(spec.submodule_search_locations))) / "ops" / op / "naive.py"
    return _widened(file, f"fla_naive_{op}", "")


@cache
def transformers(model: str) -> ModuleType:
    """``transformers.models.<model>.modeling_<model>`` in float64."""
    package = f"transformers.models.{model}"
    spec = importlib.util.find_spec(f"{package}.modeling_{model}")
    assert spec is not None
    assert spec.origin is not None
    return _widened(Path(spec.origin), f"{package}.widened_{model}", package)


def _widened(file: Path, name: str, package: str) -> ModuleType:
    source = re.sub(r"torch\.float(32)?\b(?!\d)", "torch.float64", file.read_text())
    source = source.replace(".float()", ".double()")
    module = ModuleType(name)
    module.__package__, module.__file__ = package, str(file)
    sys.modules[name] = module
    exec(compile(source, str(file), "exec"), vars(module))
    return module


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest magnitude of theirs.

    That is taken as 1e-30 at least: a strong gate's
    gradient may underflow to 0.
    """
    assert ours.shape == theirs.shape
    assert theirs.dtype == torch.float64
    largest = theirs.detach().abs().max().clamp(min=1e-30)
    return float((ours - theirs).detach().abs().max() / largest)


def fill(ours: Tensor, *theirs: Tensor) -> None:
    """Write their matrices or vectors into one of ours, one below the other."""
    with torch.no_grad():
        ours.copy_(torch.cat([t.reshape(-1, *ours.shape[1:]) for t in theirs]))


def jitter(module: nn.Module, seed: int = 0, scale: float = 0.1) -> None:
    """Move every parameter of a peer away from ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator).double()


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Draw every parameter of a peer whose constructor leaves memory as it finds it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    jitter(module, seed, scale)


def inputs(*shape: int, seed: int = 1) -> Tensor:
    """Random float64 inputs that take a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def compare(ours: Tensor, theirs: Tensor, *leaves: Tensor) -> None:
    """Outputs agree, and so do the gradients of a fixed weighting of them."""
    assert error(ours, theirs) < EXACT
    weights = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view_as(ours)
    gradients = [
        torch.autograd.grad((y * weights).sum(), leaves, retain_graph=True) for y in (ours, theirs)
    ]
    for mine, peer in zip(*gradients, strict=True):
        assert error(mine, peer) < EXACT
