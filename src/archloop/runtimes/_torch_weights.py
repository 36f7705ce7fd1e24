"""The artifact of the PyTorch runtimes: the spec and every tensor of a decoder.

Constants that a checkpoint leaves out are stored too: the decoder takes all its numbers from the
file. It is built in memory that nothing has written to, and the file is read into that. Building
on the meta device would spare even this memory, but imports 70 MB of Python that no engine needs;
it is done for a graphics card, where main memory is not what is measured.
"""

from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from archloop.stack import weights
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec


def save(decoder: Decoder, directory: Path) -> dict[str, int]:
    """Write spec and weights in the decoder's dtypes; returns parameter bytes by dtype."""
    weights.write_spec(decoder.spec, directory)
    weights.write(weights.tensors(decoder, constants=True), directory / weights.WEIGHTS)
    sizes: dict[str, int] = {}
    for parameter in decoder.parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        sizes[dtype] = sizes.get(dtype, 0) + parameter.nbytes
    return sizes


def load(directory: Path, dtype: torch.dtype) -> Decoder:
    """The decoder of an artifact whose weights are in `dtype`, ready for inference."""
    return _filled(unfilled(_spec(directory)).to(dtype), directory)


def unfilled(spec: StackSpec) -> Decoder:
    """A decoder of which only constants have their values: whoever asks fills in all weights."""
    with _WithoutRandomFilling():
        return Decoder(spec).eval().requires_grad_(False)


def load_onto(device: torch.device, directory: Path, dtype: torch.dtype) -> Decoder:
    """As `load`, on a graphics card."""
    with torch.device("meta"):
        decoder = Decoder(_spec(directory))
    return _filled(decoder.to(dtype).to_empty(device=device), directory)


def _spec(directory: Path) -> StackSpec:
    return StackSpec.from_json((directory / weights.SPEC).read_bytes())


def _filled(decoder: Decoder, directory: Path) -> Decoder:
    decoder = decoder.eval().requires_grad_(False)
    weights.fill(weights.tensors(decoder, constants=True), directory / weights.WEIGHTS)
    return decoder


class _WithoutRandomFilling(TorchFunctionMode):
    """Leaves memory that would be filled with random numbers as it is, mostly not even touched."""

    _NAMES = frozenset({"normal_", "uniform_", "trunc_normal_"})

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", None) in self._NAMES:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
