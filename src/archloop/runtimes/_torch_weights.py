"""The artifact of the PyTorch runtimes: ``spec.json`` and ``model.safetensors``, no pickle.

Every parameter and buffer is stored, also those that a checkpoint leaves out, because the decoder
is built on the meta device and takes all its numbers from the file. Reading goes straight into
the parameters' own memory: mapping the file or holding it beside them would count weights twice in
a peak memory figure.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec

_SPEC, _WEIGHTS = "spec.json", "model.safetensors"


def save(decoder: Decoder, directory: Path) -> dict[str, int]:
    """Write spec and weights in the decoder's dtypes; returns parameter bytes by dtype."""
    (directory / _SPEC).write_text(decoder.spec.to_json())
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(decoder)}
    save_file(tensors, directory / _WEIGHTS)
    sizes: dict[str, int] = {}
    for parameter in decoder.parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        sizes[dtype] = sizes.get(dtype, 0) + parameter.nbytes
    return sizes


def load(directory: Path, dtype: torch.dtype) -> Decoder:
    """The decoder of an artifact whose weights are in `dtype`, ready for inference."""
    spec = StackSpec.from_json((directory / _SPEC).read_bytes())
    with torch.device("meta"):
        decoder = Decoder(spec)
    decoder = decoder.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    with (directory / _WEIGHTS).open("rb") as file:
        # The format: 8 bytes of header size, the header as JSON, then the bytes of all tensors.
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        for name, tensor in _tensors(decoder):
            start, end = header[name]["data_offsets"]
            into = tensor.reshape(-1).view(torch.uint8).numpy()
            assert into.nbytes == end - start, f"{name} has another size or dtype in the file"
            file.seek(8 + header_size + start)
            num_read = file.readinto(into.data)
            assert num_read == into.nbytes, f"{name} is cut short"
    return decoder


def _tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, persistent or not; what blocks share comes once."""
    yield from decoder.named_parameters()
    yield from decoder.named_buffers()
