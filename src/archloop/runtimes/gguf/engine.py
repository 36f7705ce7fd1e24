"""llama.cpp's own functions, loaded once a process and silent."""

import ctypes
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def engine() -> Any:
    """The module of ``llama-cpp-python`` whose functions are llama.cpp's."""
    llama = import_module("llama_cpp")
    llama.llama_log_set(_silence(llama), ctypes.c_void_p(0))
    llama.llama_backend_init()
    return llama


@cache
def _silence(llama: Any) -> Any:
    """What takes llama.cpp's messages; held for as long as the engine may call it."""
    return llama.llama_log_callback(lambda level, text, data: None)


def libraries() -> Path:
    """The folder of llama.cpp's libraries."""
    found = find_spec("llama_cpp")
    assert found is not None, "asked after `missing_to_run`"
    assert found.origin is not None, "a package has a file"
    return Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(found.origin).parent / "lib")
