"""GGUF files of Llama models as folders: a tiny one, and SmolLM2-135M-Instruct itself."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

import smollm2
from archloop import checkpoints, generation
from archloop.checkpoints import families
from archloop.checkpoints.gguf import convert
from archloop.errors import UserError
from archloop.files import default_cache_dir
from archloop.generation.generation import generate
from archloop.stack import weights
from archloop.stack.decoder import Decoder
from archloop.text.special_tokens import SpecialTokens

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "vocab_size": 259,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_theta": 5e4,
    "tie_word_embeddings": True,
}
BLOCK = {
    "mixer_norm": "attn_norm",
    "channel_norm": "ffn_norm",
    "mixers.0.out_proj": "attn_output",
    "channel_mixer.down_proj": "ffn_down",
}


def neighbouring(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """As llama.cpp's converter permutes queries and keys."""
    width = rows.shape[0] // num_heads // 2
    return rows.reshape(num_heads, 2, width, -1).swapaxes(1, 2).reshape(rows.shape)


def tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """A decoder's weights under llama.cpp's names."""
    found = {}
    for name, tensor in weights.tensors(decoder).items():
        values = tensor.detach().numpy()
        if name in ("embedding.weight", "norm.weight"):
            found[{"embedding.weight": "token_embd", "norm.weight": "output_norm"}[name]] = values
            continue
        _, block, part = name.removesuffix(".weight").split(".", 2)
        if part in BLOCK:
            found[f"blk.{block}.{BLOCK[part]}"] = values
        elif part == "mixers.0.qkv_proj":
            q, k, v = np.split(values, [64, 96])
            found[f"blk.{block}.attn_q"] = neighbouring(q, 4)
            found[f"blk.{block}.attn_k"] = neighbouring(k, 2)
            found[f"blk.{block}.attn_v"] = v
        else:
            gate, up = np.split(values, 2)
            found[f"blk.{block}.ffn_gate"], found[f"blk.{block}.ffn_up"] = gate, up
    return found


def write(
    file: Path,
    decoder: Decoder,
    *,
    pre: str = "smollm",
    arch: str = "llama",
    scaling: tuple[str, float] | None = None,
) -> Path:
    writer = gguf.GGUFWriter(file, arch)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(5e4)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling[0]))
        writer.add_rope_scaling_factor(scaling[1])
    writer.add_layer_norm_rms_eps(1e-5)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<s>", "</s>", *letters, "ok"])
    writer.add_token_types([3, 3, *[1] * 257])
    writer.add_token_merges(["o k"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages[0].content }}{{ eos_token }}")
    for name, values in tensors(decoder).items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    built = Decoder(families.layout("llama").read(CONFIG)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.2)
    return built


def test_a_file_becomes_the_folder_of_its_model(decoder: Decoder, tmp_path: Path) -> None:
    convert(write(tmp_path / "model.gguf", decoder), tmp_path / "model")
    model = generation.load_model(tmp_path / "model")
    assert model.decoder.spec == decoder.spec
    for name, tensor in weights.tensors(decoder).items():
        assert torch.equal(weights.tensors(model.decoder)[name], tensor), name
    assert model.decoder.special_tokens == SpecialTokens(bos=0, eos=(1,))
    assert model.encode("ok 12 é") == [258, *model.encode(" "), *model.encode("12 é")]
    assert len(model.encode("12")) == 2
    assert model.encode_chat([{"role": "user", "content": "ok"}]) == [258, 1]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids_BT = torch.arange(20)[None]
    torch.testing.assert_close(theirs(ids_BT).logits, decoder(ids_BT), rtol=1e-4, atol=1e-4)


def test_linear_scaling_of_rope_is_kept(decoder: Decoder, tmp_path: Path) -> None:
    said = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}}
    plain = {key: value for key, value in CONFIG.items() if key != "rope_theta"}
    wanted = families.layout("llama").read(plain | said)
    convert(write(tmp_path / "a.gguf", decoder, scaling=("linear", 4.0)), tmp_path / "a")
    assert generation.load_model(tmp_path / "a").decoder.spec == wanted != decoder.spec
    convert(write(tmp_path / "b.gguf", decoder, scaling=("none", 4.0)), tmp_path / "b")
    assert generation.load_model(tmp_path / "b").decoder.spec == decoder.spec


@pytest.mark.parametrize(
    "change, named",
    [
        ({"arch": "gemma3"}, "'gemma3' is not llama"),
        ({"pre": "qwen2"}, "'qwen2'"),
        ({"scaling": ("yarn", 4.0)}, r"rope\.scaling\.type 'yarn' is not supported"),
    ],
)
def test_what_is_not_supported_is_named(
    change: dict[str, Any], named: str, decoder: Decoder, tmp_path: Path
) -> None:
    file = write(tmp_path / "model.gguf", decoder, **change)
    with pytest.raises(UserError, match=named):
        convert(file, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("num_bytes", [0, 20, 300, 2000, 20_000, -64])
def test_a_file_that_is_cut_off_is_said_to_be(
    num_bytes: int, decoder: Decoder, tmp_path: Path
) -> None:
    file = write(tmp_path / "model.gguf", decoder)
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match=r"model\.gguf is truncated or no GGUF file"):
        convert(file, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_no_file_of_this_kind_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.gguf cannot be read: No such file"):
        convert(tmp_path / "none.gguf", tmp_path / "model")
    (tmp_path / "text.gguf").write_text("not a model " * 20)
    with pytest.raises(UserError, match="truncated or no GGUF file"):
        convert(tmp_path / "text.gguf", tmp_path / "model")


@pytest.mark.ci
def test_smollm2_knows_the_capital_of_france() -> None:
    """Real weights: with its template too, and token by token what transformers gives."""
    folder = smollm2.build(default_cache_dir() / "models" / "smollm2-135m-instruct")
    model = generation.load_model(folder)
    prompt = "The capital of France is"
    assert "".join(generation.stream(model, prompt, max_new_tokens=2)) == " Paris."
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in "".join(generation.stream(model, question, max_new_tokens=16))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = model.encode(prompt)
    wanted = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    (reply,) = generate(model.decoder, ids, 24, stop_ids=model.stop_ids)
    assert reply.ids == wanted[0, len(ids) :].tolist()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    text = "It's 2026: naïve café — 3.14 and <|im_end|>"
    assert model.encode(text) == words(text)["input_ids"]
    assert checkpoints.load(folder, torch.bfloat16).spec.num_blocks == 30
