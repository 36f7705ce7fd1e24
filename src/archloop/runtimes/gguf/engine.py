"""llama.cpp's own functions, loaded once a process and silent."""

import ctypes
from functools import cache
from importlib import import_module
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
