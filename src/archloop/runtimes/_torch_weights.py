"""The artifact of the PyTorch runtimes: ``spec.json`` and ``model.safetensors``, no pickle.

Every parameter and buffer is stored, also those that a checkpoint leaves out: the decoder takes all
its numbers from the file. Reading goes straight into the parameters' own memory: mapping the file
or holding it beside them would count weights twice in a peak memory figure. Building on the meta
device would spare the initialisation too, but brings in 70 MB of Python that no engine needs.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.stack.tensors import leaves

_SPEC, _WEIGHTS = "spec.json", "model.safetensors"


def save(decoder: Decoder, directory: Path) -> dict[str, int]:
    """Write spec and weights in the decoder's dtypes; returns parameter bytes by dtype."""
    (directory / _SPEC).write_text(decoder.spec.to_json())
    tensors = {name: tensor.contiguous() for name, tensor, *_ in leaves(decoder)}
    save_file(tensors, directory / _WEIGHTS)
    sizes: dict[str, int] = {}
    for parameter in decoder.parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        sizes[dtype] = sizes.get(dtype, 0) + parameter.nbytes
    return sizes


def load(directory: Path, dtype: torch.dtype) -> Decoder:
    """The decoder of an artifact whose weights are in `dtype`, ready for inference."""
    spec = StackSpec.from_json((directory / _SPEC).read_bytes())
    with _WithoutRandomFilling():
        decoder = Decoder(spec)
    decoder = decoder.to(dtype).eval().requires_grad_(False)
    with (directory / _WEIGHTS).open("rb") as file:
        # The format: 8 bytes of header size, the header as JSON, then the bytes of all tensors.
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        for name, tensor, *_ in leaves(decoder):
            start, end = header[name]["data_offsets"]
            into = tensor.reshape(-1).view(torch.uint8).numpy()
            assert into.nbytes == end - start, f"{name} has another size or dtype in the file"
            file.seek(8 + header_size + start)
            num_read = file.readinto(into.data)
            assert num_read == into.nbytes, f"{name} is cut short"
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
