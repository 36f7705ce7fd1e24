"""A GGUF file of a Llama model, turned into a folder that we and transformers load.

GGUF is what llama.cpp reads: quantised weights, configuration and tokenizer in one file. Weights
are dequantised to float32 by the ``gguf`` package. llama.cpp turns neighbouring pairs of a head
where transformers turns pairs half a head apart, so rows of queries and keys are put back in order.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers

from archloop.checkpoints import files
from archloop.errors import UserError
from archloop.stack import weights

_PLAIN = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of tensors, those of a block without their number."""
_CONTROL = 3
"""Type of tokens that are no text."""
_PRE_TOKENIZERS: Mapping[str, Callable[[], list[Any]]] = {
    # As SmolLM's tokenizer cuts text: each digit alone, everything else as GPT-2 does.
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


def convert(file: Path, folder: Path) -> None:
    """Write the folder of a GGUF file: `config.json`, float32 weights, tokenizer, chat template.

    Args:
        file: of architecture ``llama``.
        folder: new, or of a checkpoint to replace.

    Raises:
        UserError: the ``gguf`` package is missing, or the file is truncated, no GGUF file, of
            another architecture or tokenizer, or with another scaling of RoPE than a linear one.
    """
    if find_spec("gguf") is None:
        raise UserError("reading GGUF files needs the gguf package; pip install archloop[llama]")
    reader = _opened(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise UserError(f"{file}: architecture {fields.get('general.architecture')!r} is not llama")
    tensors = dict(_tensors(reader, fields))
    config = _config(fields, tied="lm_head.weight" not in tensors)
    with files.replacing(folder) as staged:
        weights.write(tensors, staged / weights.WEIGHTS, {"format": "pt"})
        _write(staged / files.CONFIG, config)
        _write(staged / "generation_config.json", _tokens(fields))
        _tokenizer(fields, file).save(str(staged / "tokenizer.json"))
        _write(staged / "tokenizer_config.json", _tokenizer_config(fields))


def _opened(file: Path) -> Any:
    """A reader, whose tensors all lie in the file."""
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except Exception as error:  # The library runs into the end of the file wherever it comes.
        raise UserError(f"{file} is truncated or no GGUF file ({error}); fetch it again") from error


def _config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    llama = {k.removeprefix("llama."): v for k, v in fields.items() if k.startswith("llama.")}
    heads = llama["attention.head_count"]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": llama.get("attention.head_count_kv", heads),
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": _decimal(llama["attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {
            "rope_theta": _decimal(llama.get("rope.freq_base", 1e4)),
            **_scaling(llama),
        },
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "dtype": "float32",
        **_tokens(fields),
    }


def _scaling(llama: dict[str, Any]) -> dict[str, Any]:
    """The type of RoPE, read as llama.cpp reads it: a factor without a type is linear."""
    said = {k: v for k, v in llama.items() if k.startswith(("rope.scaling.", "rope.scale_"))}
    rope_type = said.pop("rope.scaling.type", "linear")
    older = said.pop("rope.scale_linear", 0.0)
    factor = _decimal(said.pop("rope.scaling.factor", older))
    if rope_type not in ("none", "linear"):
        raise UserError(f"llama.rope.scaling.type {rope_type!r} is not supported; only 'linear' is")
    if said:
        raise UserError(f"llama.{min(said)} is not supported; only linear scaling of RoPE is")
    if rope_type == "none" or factor in (0, 1):
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32, as 1e-5 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tokens(fields: dict[str, Any]) -> dict[str, int | None]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{o}_token_id": fields.get(f"tokenizer.ggml.{t}_token_id") for o, t in names.items()}


def _tensors(reader: Any, fields: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    from gguf import quants

    heads = fields["llama.attention.head_count"]
    num_heads = {"attn_q": heads, "attn_k": fields.get("llama.attention.head_count_kv", heads)}
    for tensor in reader.tensors:
        *block, name, suffix = tensor.name.split(".")
        if name not in _PLAIN or suffix != "weight":
            raise UserError(f"tensor {tensor.name!r} is not known of llama models")
        values: NDArray[np.float32] = quants.dequantize(tensor.data, tensor.tensor_type)
        if name in num_heads:
            values = _half_apart(values, num_heads[name])
        where = f"model.layers.{block[1]}." if block else ""
        yield f"{where}{_PLAIN[name]}.weight", torch.from_numpy(values.copy())


def _half_apart(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Rows of each head with the members of a pair half a head apart, no longer neighbours."""
    pairs = rows.reshape(num_heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(fields: dict[str, Any], file: Path) -> tokenizers.Tokenizer:
    model, pre = (str(fields.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre"))
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise UserError(
            f"{file}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; "
            f"only 'gpt2' with {', '.join(_PRE_TOKENIZERS)}"
        )
    texts = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    built = tokenizers.Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    built.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre]())
    built.decoder = decoders.ByteLevel()
    token_types = fields["tokenizer.ggml.token_type"]
    built.add_special_tokens([t for t, k in zip(texts, token_types, strict=True) if k == _CONTROL])
    return built


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    texts = fields["tokenizer.ggml.tokens"]
    named = {k.removesuffix("_id"): texts[i] for k, i in _tokens(fields).items() if i is not None}
    template = fields.get("tokenizer.chat_template")
    return named if template is None else named | {"chat_template": template}


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
