"""Random-weight LFM2 models of transformers at reduced width, the peer of ours."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from archloop.checkpoints import families
from archloop.stack import presets

DENSE = ("lfm2-350m", "lfm2-700m", "lfm2-1.2b", "lfm2-2.6b")
MOE = ("lfm2-8b-a1b", "lfm2-24b-a2b")
VOCAB = 251


def config(name: str, num_layers: int | None = 4, **changes: Any) -> dict[str, Any]:
    """A preset's configuration with its layout, head ratio and experts, but narrow.

    The first four layers have every kind: dense and sparse, convolution and attention.
    """
    given = families.layout("lfm2").write(presets.load(name))
    ratio = given["num_attention_heads"] // given["num_key_value_heads"]
    width = 32 * ratio
    kinds = given["layer_types"][:num_layers]
    narrow = {
        "hidden_size": width,
        "num_attention_heads": 2 * ratio,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "layer_types": kinds,
        "num_hidden_layers": len(kinds),
        "intermediate_size": 2 * width,
        "pad_token_id": 0,
    }
    if "num_experts" in given:
        narrow["moe_intermediate_size"] = 16
    return given | narrow | changes


def model(settings: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """The model of transformers for a configuration, with weights that make logits differ."""
    transformers = pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    given = {k: v for k, v in settings.items() if k not in ("model_type", "architectures", "dtype")}
    stem = "Lfm2Moe" if settings["model_type"] == "lfm2_moe" else "Lfm2"
    peer = getattr(transformers, f"{stem}ForCausalLM")(
        getattr(transformers, f"{stem}Config")(**given)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*peer.named_parameters(), *peer.named_buffers()]:
            if "inv_freq" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)
            else:
                tensor.copy_((0.0 if name.endswith("bias") else 1.0) + 0.2 * noise)
    peer.generation_config.eos_token_id = None
    return peer.to(dtype).eval()


def saved(peer: Any, folder: Path, **options: Any) -> Path:
    """The folder that the peer was saved to."""
    peer.save_pretrained(folder, **options)
    return folder


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest reference value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
