"""A decoder as a GGUF file: names, keys and shapes as llama.cpp's own converter has them.

A stack that a family of checkpoints can say has that family's configuration and tensors
(`checkpoints`); the ``gguf`` package knows what llama.cpp calls each of them. What is left to say
here is how an architecture's tensors differ beyond their names, and which keys it reads. The file
has no tokenizer ("no_vocab"): an engine that is measured is given token ids.

Source: ``conversion/`` of llama.cpp, which turns the same checkpoints into the same tensors.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from archloop import registry
from archloop.checkpoints import families
from archloop.checkpoints.layouts.base import Layout, UnsayableError
from archloop.checkpoints.pieces import Piece, gather
from archloop.stack import weights
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec

ARCHITECTURES = {
    "lfm2": "LFM2",
    "lfm2_moe": "LFM2MOE",
    "llama": "LLAMA",
    "qwen3": "QWEN3",
    "mamba2": "MAMBA2",
    "gemma3_text": "GEMMA3",
}
"""By the checkpoints' ``model_type``, the ``gguf`` package's name of llama.cpp's architecture."""
GEMMA_PERIOD, GEMMA_THETA = 6, 1e4
"""What llama.cpp takes for given in Gemma 3: the layers that are not windowed, and the base of RoPE
in those that are."""
GEMMA_27B = 62
"""Layers by which llama.cpp knows the 27B model: its queries are scaled by the width over heads,
those of any other stack by the width of a head."""
BLOCK = 32
"""Numbers of a row that share a scale in Q4_0 and Q8_0."""
_ALIGNED = 32
"""Bytes of which each tensor's place is a multiple: GGUF's default."""


def unsupported(spec: StackSpec) -> str | None:
    """Why llama.cpp cannot run a stack, or None."""
    family, reason = _family(spec)
    return None if family else reason


def _family(spec: StackSpec) -> tuple[tuple[Layout, dict[str, Any]] | None, str]:
    """The first family that can say the stack and that llama.cpp runs, else why there is none.

    A stack of attention alone is LFM2 to one family and Qwen3 to another, and llama.cpp runs the
    second alone.
    """
    lacking = []
    for name in registry.names("layouts"):
        family = families.layout(name)
        if not ARCHITECTURES.keys() & family.model_types.keys():
            continue
        try:
            config = family.write(spec)
        except UnsayableError as error:
            lacking.append(f"{name}: {error}")
            continue
        reason = _refused(spec, config)
        if reason is None:
            return (family, config), ""
        lacking.append(f"{name}: {reason}")
    return None, f"it is of no family that llama.cpp runs ({'; '.join(lacking)})"


def _refused(spec: StackSpec, config: dict[str, Any]) -> str | None:
    """Why llama.cpp does not run what a family says, or None."""
    model_type = config["model_type"]
    if model_type not in ARCHITECTURES:
        return f"nothing here writes {model_type} for it"
    if config.get("conv_bias"):
        return "short convolutions have no bias there"
    if config.get("rope_parameters", {}).get("rope_type", "default") != "default":
        return "scaled rotary embeddings are not written"
    if model_type == "gemma3_text" and (reason := _refused_gemma(config)) is not None:
        return reason
    if spec.d_model % BLOCK:
        return f"rows are quantised {BLOCK} numbers at a time, and d_model={spec.d_model}"
    if model_type.startswith("lfm2"):
        if len(set(config["layer_types"])) < 2:
            return "it needs both convolutions and attention there"
        heads, head_dim = config["num_attention_heads"], _head_dim(config)
        if heads * head_dim != spec.d_model:
            return f"heads must be as wide as the model there, not {heads} of {head_dim}"
        if config["conv_L_cache"] < 2:
            return "short convolutions see two tokens at least there"
    if model_type == "lfm2_moe":
        return _refused_experts(config)
    return None


def _refused_experts(config: dict[str, Any]) -> str | None:
    if not config["use_expert_bias"]:
        return "a router has a selection bias there"
    if not config["norm_topk_prob"]:
        return "experts' weights are divided by their sum there"
    if config["routed_scaling_factor"] != 1.0:
        return "experts' weights are not scaled there"
    return None


def _refused_gemma(config: dict[str, Any]) -> str | None:
    for index, kind in enumerate(config["layer_types"]):
        if (kind == "full_attention") != ((index + 1) % GEMMA_PERIOD == 0):
            return f"every {GEMMA_PERIOD}th layer and no other has full attention there"
    width, of_what = config["head_dim"], "of a head"
    if len(config["layer_types"]) == GEMMA_27B:
        width = config["hidden_size"] // config["num_attention_heads"]
        of_what = f"over the heads in {GEMMA_27B} layers"
    if config["query_pre_attn_scalar"] != width:
        return f"attention is scaled by the width {of_what} there"
    for kind, rope in config["rope_parameters"].items():
        if rope.get("rope_type", "default") != "default":
            return "scaled rotary embeddings are not written"
        if kind == "sliding_attention" and rope["rope_theta"] != GEMMA_THETA:
            return f"the rotary base of windowed attention is {GEMMA_THETA:.0f} there"
    return None


def _head_dim(config: dict[str, Any]) -> int:
    width: int = config["hidden_size"] // config["num_attention_heads"]
    return int(config.get("head_dim") or width)


def write(decoder: Decoder, file: Path) -> None:
    """Write a decoder in float32; vectors and convolutions stay so in every quantisation.

    Names and shapes come first in the file, so every tensor is made twice and never kept: beside
    the decoder there is one tensor at a time in memory.
    """
    targets = weights.tensors(decoder)
    writer = _begun(decoder.spec, targets, file)
    for _, tensor in tensors(decoder.spec, targets):
        writer.write_tensor_data(np.ascontiguousarray(tensor.float().numpy()))
    writer.close()


def write_zeros(spec: StackSpec, targets: Mapping[str, Tensor], file: Path) -> None:
    """As `write`, of zeros: a file with a hole in their place, which takes no room on a disk.

    Args:
        spec: of the stack.
        targets: a decoder's tensors by name, of which the shapes count.
        file: to write.
    """
    writer = _begun(spec, targets, file)
    writer.close()
    padded = [-(-4 * tensor.numel() // _ALIGNED) * _ALIGNED for _, tensor in tensors(spec, targets)]
    begins = -(-file.stat().st_size // _ALIGNED) * _ALIGNED
    os.truncate(file, begins + sum(padded))


def _begun(spec: StackSpec, targets: Mapping[str, Tensor], file: Path) -> Any:
    """A file's writer that has written all but the numbers."""
    from gguf import GGUFWriter

    _, config = _say(spec)
    writer = GGUFWriter(file, arch=_name(_architecture(config)))
    _write_keys(writer, config["model_type"], config, spec)
    float32 = np.dtype(np.float32)
    for name, tensor in tensors(spec, targets):
        size = tensor.numel() * float32.itemsize
        writer.add_tensor_info(name, tensor.shape, float32, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def tensors(spec: StackSpec, targets: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file, by llama.cpp's name, of a decoder's tensors by theirs."""
    from gguf import get_tensor_name_map

    family, config = _say(spec)
    known = get_tensor_name_map(_architecture(config), spec.num_blocks)
    variant = "fused" if "fused" in family.variants else family.variants[0]
    pieces = family.pieces(spec, variant)
    for name, tensor in _tensors(config["model_type"], config, pieces, targets):
        found = known.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"llama.cpp has no name for {name}"
        yield found, tensor


def _say(spec: StackSpec) -> tuple[Layout, dict[str, Any]]:
    """The family of a stack that llama.cpp runs, and its configuration."""
    found, reason = _family(spec)
    assert found is not None, reason
    return found


def _architecture(config: dict[str, Any]) -> Any:
    from gguf import MODEL_ARCH

    return MODEL_ARCH[ARCHITECTURES[config["model_type"]]]


def _name(arch: Any) -> str:
    from gguf import MODEL_ARCH_NAMES

    name: str = MODEL_ARCH_NAMES[arch]
    return name


def _write_keys(writer: Any, model_type: str, config: dict[str, Any], spec: StackSpec) -> None:
    """What the architecture reads beside its tensors."""
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(spec.vocab_size)
    writer.add_block_count(spec.num_blocks)
    writer.add_context_length(config.get("max_position_embeddings", 1 << 20))
    writer.add_embedding_length(spec.d_model)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    if model_type == "mamba2":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(config["conv_kernel"])
        writer.add_ssm_inner_size(config["num_heads"] * config["head_dim"])
        writer.add_ssm_state_size(config["state_size"])
        writer.add_ssm_time_step_rank(config["num_heads"])
        writer.add_ssm_group_count(config["n_groups"])
        return
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = _head_dim(config)
    writer.add_head_count(heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    rope = config["rope_parameters"]
    if model_type == "gemma3_text":
        writer.add_sliding_window(config["sliding_window"])
        rope = rope.get("full_attention", {"rope_theta": GEMMA_THETA})
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_feed_forward_length(config["intermediate_size"])
    layer_types = config.get("layer_types", [])
    if "conv" not in layer_types:
        writer.add_head_count_kv(kv_heads)
    if model_type.startswith("lfm2"):
        # A layer without key-value heads is a convolution to llama.cpp.
        writer.add_head_count_kv(
            [0 if layer_type == "conv" else kv_heads for layer_type in layer_types]
        )
        writer.add_shortconv_l_cache(config["conv_L_cache"])
    if model_type == "lfm2_moe":
        from gguf import ExpertGatingFuncType

        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_leading_dense_block_count(config["num_dense_layers"])
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def _tensors(
    model_type: str, config: dict[str, Any], pieces: Iterator[Piece], targets: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its checkpoint's name, as llama.cpp stores it."""
    parts: dict[str, list[Piece]] = {}
    for piece in pieces:
        parts.setdefault(piece.name, []).append(piece)
    for name, of_tensor in parts.items():
        tensor = gather(of_tensor, targets).detach().cpu()
        if name.endswith("experts.gate_up_proj"):
            # llama.cpp's converter drops the prefix from what it stacks.
            stem = name.removeprefix("model.").removesuffix("gate_up_proj")
            gate, up = tensor.chunk(2, 1)
            yield f"{stem}w1.weight", gate
            yield f"{stem}w3.weight", up
        elif name.endswith("experts.down_proj"):
            yield name.removeprefix("model.").removesuffix("down_proj") + "w2.weight", tensor
        else:
            change = _CHANGES.get(model_type, _same)
            yield change(name, tensor, config)


def _same(name: str, tensor: Tensor, config: dict[str, Any]) -> tuple[str, Tensor]:
    del config
    return name, tensor


def _lfm2(name: str, tensor: Tensor, config: dict[str, Any]) -> tuple[str, Tensor]:
    del config
    if name.endswith(".expert_bias"):
        return f"{name}.bias", tensor
    return name, tensor.squeeze(1) if ".conv.conv" in name else tensor


def _llama(name: str, tensor: Tensor, config: dict[str, Any]) -> tuple[str, Tensor]:
    """Pairs that turn together stand side by side there, and half a head apart in checkpoints."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, key in heads.items():
        if f".{part}." in name:
            halves = tensor.reshape(config[key], 2, -1, *tensor.shape[1:])
            return name, halves.transpose(1, 2).reshape(tensor.shape)
    return name, tensor


def _mamba2(name: str, tensor: Tensor, config: dict[str, Any]) -> tuple[str, Tensor]:
    if name.endswith(".A_log"):
        return name, -tensor.float().exp()[:, None]
    if name.endswith(".D"):
        return name, tensor[:, None]
    if name.endswith(".dt_bias"):
        return name.removesuffix(".dt_bias") + ".dt_proj.bias", tensor
    if name.endswith("conv1d.weight"):
        return name, tensor.squeeze(1)
    if name.endswith("mixer.norm.weight"):
        return name, tensor.reshape(config["n_groups"], -1)
    return name, tensor


def _gemma(name: str, tensor: Tensor, config: dict[str, Any]) -> tuple[str, Tensor]:
    """Norms multiply by what is stored there, and by one more in checkpoints."""
    del config
    return name, tensor.float() + 1 if name.endswith("norm.weight") else tensor


_CHANGES: dict[str, Callable[[str, Tensor, dict[str, Any]], tuple[str, Tensor]]] = {
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "llama": _llama,
    "mamba2": _mamba2,
    "gemma3_text": _gemma,
}


def weight_bytes(file: Path) -> dict[str, int]:
    """Bytes of a file's weights by GGUF's type, such as ``{"Q4_0": ..., "F32": ...}``."""
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    for tensor in GGUFReader(file).tensors:
        dtype = tensor.tensor_type.name
        sizes[dtype] = sizes.get(dtype, 0) + int(tensor.n_bytes)
    return sizes
