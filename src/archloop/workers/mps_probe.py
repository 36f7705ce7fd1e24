"""A process that opens the first card and ends: what it cannot do, a training here cannot either.

By NVIDIA's driver alone, which takes a tenth of a second where PyTorch takes several.
"""

import ctypes
import sys


def main() -> None:
    """Open a card; say what failed and end with status 1 if that fails."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        sys.exit(str(error))
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for name, arguments in (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
    ):
        status = getattr(driver, name)(*arguments)
        if status:
            words = ctypes.c_char_p()
            driver.cuGetErrorString(status, ctypes.byref(words))
            said = (words.value or b"").decode(errors="replace")
            sys.exit(f"{name}: {said} (CUDA error {status})")


if __name__ == "__main__":
    main()
