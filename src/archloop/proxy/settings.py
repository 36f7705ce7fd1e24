"""What a training could change for those after it in the same process, by name.

A mixer, a plug-in or a library may set any of it and forget to set it back. Nobody has to be
trusted: the settings before and after are compared, and a process that differs is given up. Random
generators are not among them, as each training sets them first; nor is the environment, where
libraries keep notes of their own.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

Settings = Mapping[str, object]


def settings() -> Settings:
    """PyTorch's and Python's settings of this process that change what is computed, or how."""
    matmul, cudnn, cuda = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.cuda
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic, warnings only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled memory": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # untyped
        "matmul precision": torch.get_float32_matmul_precision(),
        "reduced sums": (
            matmul.allow_fp16_reduced_precision_reduction,
            matmul.allow_bf16_reduced_precision_reduction,
        ),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "attention": (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ),
        "denormals": bool(torch.tensor([1e-40]).mul(1.0).item() == 0.0),
        "working folder": Path.cwd(),
    }


def changed(before: Settings, after: Settings) -> tuple[str, ...]:
    """Names of the settings that differ."""
    return tuple(name for name, value in before.items() if after[name] != value)
