"""Small checkpoint folders to load, and to damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from archloop import checkpoints
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"]


def tokenizer() -> Tokenizer:
    """Byte-level with one merge: nearly a token per byte, so characters span tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters, "ok"])}
    built = Tokenizer(BPE(vocabulary, [("o", "k")]))
    built.add_special_tokens(SPECIAL)
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", 1)]
    )
    return built


def spec(vocab_size: int = 40, **changes: Any) -> StackSpec:
    """Two blocks of the LFM2-MoE family."""
    blocks = (
        BlockSpec(
            mixers=(MixerSpec(name="short_conv"),),
            channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": 2.0}),
        ),
        BlockSpec(
            mixers=(MixerSpec(name="gqa", config={"head_dim": 16, "queries_per_kv": 2}),),
            channel_mixer=ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2}),
        ),
    )
    return StackSpec(d_model=32, vocab_size=vocab_size, blocks=blocks, **changes)


def decoder(given: StackSpec | None = None, dtype: torch.dtype = torch.float32) -> Decoder:
    """Random weights, expert biases included."""
    torch.manual_seed(0)
    built = Decoder(given or spec())
    for name, buffer in built.named_buffers():
        if name.endswith("expert_bias"):
            buffer.normal_()
    return built.to(dtype).eval()


def sharded(folder: Path) -> Path:
    """A checkpoint of several shards."""
    checkpoints.save(decoder(), folder, max_shard_bytes=20_000)
    return folder


def whole(folder: Path) -> Path:
    """A checkpoint of one weight file."""
    checkpoints.save(decoder(), folder)
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change a weight file in place."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
