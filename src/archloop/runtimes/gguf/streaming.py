"""A GGUF file of a stack that memory does not hold: quantised a tensor at a time.

    1. llama.cpp quantises a file of zeros, which is a hole on the disk: so it is llama.cpp that
       decides which tensor has which type.
    2. Every tensor is made, rounded by llama.cpp's own function, and written over its zeros.

In memory there are one tensor and the part of a decoder that it is made of.
"""

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from archloop.runtimes.gguf import file as gguf_file
from archloop.stack.spec import StackSpec

_AT_ONCE = 1 << 26
"""Numbers that are rounded at once."""


def write(
    spec: StackSpec,
    targets: Mapping[str, Tensor],
    model: Path,
    quantize: Callable[[Path, Path], None],
) -> None:
    """Write a quantised file.

    Args:
        spec: of the stack.
        targets: a decoder's tensors by name; each is asked for a few times, in the decoder's order.
        model: the file.
        quantize: has llama.cpp quantise one file into another.

    Raises:
        OSError: the disk is full.
    """
    from gguf import GGUFReader

    zeros = model.with_name("zeros.gguf")
    gguf_file.write_zeros(spec, targets, zeros)
    quantize(zeros, model)
    zeros.unlink()
    places = {
        held.name: (int(held.data_offset), int(held.tensor_type))
        for held in GGUFReader(model).tensors
    }
    with model.open("r+b") as file:
        for name, tensor in gguf_file.tensors(spec, targets):
            offset, tensor_type = places[name]
            file.seek(offset)
            rows = tensor.reshape(-1, tensor.shape[-1])
            for part in rows.split(max(1, _AT_ONCE // rows.shape[1])):
                file.write(rounded(part, tensor_type))


def rounded(rows: Tensor, tensor_type: int) -> bytes:
    """Rows (rows, numbers) as a tensor of a type of GGUF has them."""
    numbers = np.ascontiguousarray(rows.float().numpy())
    count, width = numbers.shape
    library = _library()
    into = ctypes.create_string_buffer(count * library.ggml_row_size(tensor_type, width))
    library.ggml_quantize_chunk(tensor_type, numbers.ctypes.data, into, 0, count, width, None)
    return into.raw


@cache
def _library() -> Any:
    """ggml's functions, in a library beside llama.cpp's."""
    from archloop.runtimes.gguf.engine import engine, libraries

    engine()
    found = sorted(libraries().glob("*ggml-base.*"), key=lambda path: len(path.name))
    assert found, f"{libraries()} has no ggml"
    library = ctypes.CDLL(str(found[0]))
    library.ggml_row_size.restype = library.ggml_quantize_chunk.restype = ctypes.c_size_t
    size = ctypes.c_int64
    library.ggml_row_size.argtypes = [ctypes.c_int, size]
    address = ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, address, ctypes.c_char_p),
        *(size, size, size, address),
    ]
    return library
