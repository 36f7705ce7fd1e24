"""llama.cpp: which stacks it runs, what its files hold, and that its logits are those of eager."""

import json
from pathlib import Path

import pytest

from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.gguf import file as gguf_file
from archloop.runtimes.gguf import vocabulary
from archloop.runtimes.llama_cpp import LlamaCpp
from archloop.runtimes.parity import session_rows
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

SWIGLU = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
MOE = ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2, "expansion": 0.5})
CONV = MixerSpec(name="short_conv")
GQA = MixerSpec(name="gqa", config={"head_dim": 64})
PLAIN = MixerSpec(name="gqa", config={"head_dim": 64, "qk_norm": False})
MAMBA2 = MixerSpec(name="mamba2")


def stack(*blocks: tuple[MixerSpec, ChannelMixerSpec | None]) -> StackSpec:
    return StackSpec(
        d_model=128,
        vocab_size=256,
        blocks=tuple(
            BlockSpec(mixers=(mixer,), channel_mixer=channel) for mixer, channel in blocks
        ),
    )


def gemma(num_blocks: int = 7, **attention: float) -> StackSpec:
    """Every sixth block sees everything; norms multiply by 1 + w."""
    shared = {"head_dim": 64, "norm_offset": True, "norm_eps": 1e-6} | attention
    window = MixerSpec(name="swa", config={"window": 4, **shared})
    block = BlockSpec(
        mixers=(window,),
        channel_mixer=ChannelMixerSpec(name="geglu", config={"expansion": 2.0}),
        post_norms=True,
    )
    full = block.model_copy(update={"mixers": (MixerSpec(name="gqa", config=shared),)})
    return StackSpec(
        d_model=128,
        vocab_size=256,
        blocks=tuple(block if (index + 1) % 6 else full for index in range(num_blocks)),
        norm_offset=True,
        norm_eps=1e-6,
        embedding_multiplier=128**0.5,
    )


STACKS = {
    "gemma3": gemma(),
    "lfm2": stack((CONV, SWIGLU), (GQA, SWIGLU)),
    "lfm2moe": stack((CONV, SWIGLU), (GQA, MOE)),
    "llama": stack((PLAIN, SWIGLU), (PLAIN, SWIGLU)),
    "mamba2": stack((MAMBA2, None), (MAMBA2, None)),
    "qwen3": stack((GQA, SWIGLU), (GQA, SWIGLU)),
}


@pytest.fixture
def runtime() -> LlamaCpp:
    found = LlamaCpp()
    if missing := found.missing_to_export():
        pytest.skip(missing)
    return found


@pytest.mark.parametrize("architecture", STACKS)
def test_a_file_names_its_architecture(architecture: str, tmp_path: Path) -> None:
    from gguf import GGUFReader

    spec = STACKS[architecture]
    assert gguf_file.unsupported(spec) is None
    gguf_file.write(build_random(spec, 0), tmp_path / "model.gguf")
    reader = GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["general.architecture"].contents() == architecture
    params = sum(p.numel() for p in build_random(spec, 0).parameters())
    # The experts' selection bias is a buffer to us.
    stored = sum(int(t.n_elements) for t in reader.tensors if "exp_probs" not in t.name)
    assert stored == params


def test_what_no_architecture_has_is_refused() -> None:
    gla = stack((MixerSpec(name="gla"), SWIGLU))
    assert "of no family that llama.cpp runs" in (gguf_file.unsupported(gla) or "")
    reason = gguf_file.unsupported(stack((CONV, SWIGLU), (CONV, SWIGLU)))
    assert "needs both convolutions and attention" in (reason or "")
    odd = MixerSpec(name="short_conv", config={"bias": True})
    reason = gguf_file.unsupported(stack((odd, SWIGLU), (GQA, SWIGLU)))
    assert "short convolutions have no bias there" in (reason or "")
    early = gemma().replace(blocks=gemma().blocks[::-1])
    assert "every 6th layer and no other" in (gguf_file.unsupported(early) or "")
    assert "the width of a head there" in (gguf_file.unsupported(gemma(scale=0.1)) or "")
    reason = gguf_file.unsupported(gemma(rope_theta=5e4))
    assert "rotary base of windowed attention is 10000 there" in (reason or "")


WIDTH_OVER_HEADS = {"num_heads": 4, "scale": 32**-0.5}
"""Heads of 64 in a stack 128 wide, whose queries are scaled as if they were 32 wide."""


def test_the_27b_gemma_is_known_by_its_layers_and_scales_by_the_width_over_the_heads() -> None:
    assert gguf_file.unsupported(gemma(62, **WIDTH_OVER_HEADS)) is None
    reason = gguf_file.unsupported(gemma(62, num_heads=4))
    assert "the width over the heads in 62 layers there" in (reason or "")
    reason = gguf_file.unsupported(gemma(61, **WIDTH_OVER_HEADS))
    assert "the width of a head there" in (reason or "")
    assert gguf_file.unsupported(gemma(61, num_heads=4)) is None


@pytest.mark.ci
def test_62_layers_of_gemma_scale_as_eager_pytorch_does(runtime: LlamaCpp, tmp_path: Path) -> None:
    decoder = build_random(gemma(62, **WIDTH_OVER_HEADS), 1)
    assert export(runtime, decoder, tmp_path / "a", "f16").parity_error is not None


@pytest.mark.ci
@pytest.mark.parametrize("quant", LlamaCpp.quants)
@pytest.mark.parametrize("architecture", STACKS)
def test_logits_are_those_of_eager_pytorch(
    architecture: str, quant: str, runtime: LlamaCpp, tmp_path: Path
) -> None:
    # The export itself compares: prefill in two parts, then decode steps.
    manifest = export(runtime, build_random(STACKS[architecture], 1), tmp_path / "a", quant)
    assert manifest.parity_error is not None
    kind = quant.upper()
    assert kind in manifest.weight_bytes
    # Norms, convolutions, routers and their biases stay exact.
    assert set(manifest.weight_bytes) <= {kind, "F32", "Q8_0", "Q6_K"}


@pytest.mark.ci
def test_a_deep_context_comes_back_from_its_file(runtime: LlamaCpp, tmp_path: Path) -> None:
    export(runtime, build_random(STACKS["lfm2"], 1), tmp_path / "a", "f16")
    session = runtime.open(tmp_path / "a", threads=1, max_context=700)
    taken = []
    for _ in range(2):
        # Filled the first time, restored the second, with another conversation between.
        session.fill(600, seed=3)
        session.decode_step(7)
        taken.append(session.logits().copy())
        session_rows(session, [[1, 2, 3]], [4])
    assert (taken[0] == taken[1]).all()
    session.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer of 300 tokens, a special one, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the other 12 of 123 weathers, they're there"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": "{{ messages[0]['content'] }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def model(runtime: LlamaCpp, tmp_path: Path) -> Path:
    del runtime  # It is there, or the test is passed over.
    spec = STACKS["llama"].replace(vocab_size=310)
    gguf_file.write(build_random(spec, 0), tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


@pytest.mark.ci
def test_a_checkpoints_tokenizer_is_the_engines_too(checkpoint: Path, model: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

    before = {tensor.name: bytes(tensor.data) for tensor in GGUFReader(model).tensors}
    assert not vocabulary.has_one(model)
    assert vocabulary.add(model, checkpoint) is None
    assert vocabulary.has_one(model)
    ours = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    for text in ("the weather, 2026<|end|>", "Ünï ⊕ 😶\u200d🌫️\n\n they're", " "):
        assert vocabulary.tokens(model, text) == ours.encode(text, add_special_tokens=False).ids
    reader = GGUFReader(model)
    assert {tensor.name: bytes(tensor.data) for tensor in reader.tensors} == before
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == 0
    assert "messages" in reader.fields["tokenizer.chat_template"].contents()
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 310
    assert LlamaCpp().command(model.parent) == f"llama-cli -m {model}"


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "{}",
        "[]",
        '{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": []}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "ByteLevel"}}',
    ],
)
def test_a_malformed_tokenizer_is_left_out(told: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    gguf_file.write(build_random(STACKS["llama"], 0), file)
    before = file.read_bytes()
    (tmp_path / "tokenizer.json").write_text(told)
    assert vocabulary.add(file, tmp_path) == "its tokenizer.json is malformed"
    assert file.read_bytes() == before


@pytest.mark.ci
def test_a_tokenizer_that_the_engine_cannot_cut_like_is_left_out(
    checkpoint: Path, model: Path, tmp_path: Path
) -> None:
    before = model.read_bytes()
    told = json.loads((checkpoint / "tokenizer.json").read_text())
    told["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False},
            told["pre_tokenizer"] | {"use_regex": False},
        ],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    assert "gives this tokenizer's ids" in (vocabulary.add(model, tmp_path) or "")
    told["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    assert "byte-level BPE" in (vocabulary.add(model, tmp_path) or "")
    assert model.read_bytes() == before
    assert LlamaCpp().command(tmp_path).startswith("llama-bench")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"use_bias": False}, "a router has a selection bias there"),
        ({"normalize": False}, "experts' weights are divided by their sum there"),
        ({"routed_scale": 2.5}, "experts' weights are not scaled there"),
    ],
)
def test_experts_that_llama_cpp_lacks_are_refused(setting: dict[str, float], reason: str) -> None:
    odd = MOE.model_copy(update={"config": MOE.config | setting})
    assert reason in (gguf_file.unsupported(stack((CONV, SWIGLU), (GQA, odd))) or "")


def test_a_convolution_of_one_token_is_refused() -> None:
    one = MixerSpec(name="short_conv", config={"kernel": 1})
    reason = gguf_file.unsupported(stack((one, SWIGLU), (GQA, SWIGLU)))
    assert "see two tokens at least there" in (reason or "")


@pytest.mark.ci
def test_windowed_blocks_keep_their_window_alone(runtime: LlamaCpp, tmp_path: Path) -> None:
    export(runtime, build_random(STACKS["gemma3"], 1), tmp_path / "a", "f16")
    session = runtime.open(tmp_path / "a", threads=1, max_context=4096)
    session.prefill(session.prepare([1] * 4096))
    # 256 bytes a token and block: one block of 4,096 tokens and six of 768; all seven are 7.3 MB.
    assert session._llama.llama_state_get_size(session._context) < 3e6
    # Of the state for any number of tokens it tells nothing.
    assert session.state_bytes is None
    session.close()
