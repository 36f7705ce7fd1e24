"""What is saved is what is loaded: layouts, dtypes, shards, replacement, memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from archloop import checkpoints, registry
from archloop.checkpoints import families, files
from archloop.stack import weights
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from checkpoints import folders


def assert_same(ours: Decoder, theirs: Decoder) -> None:
    wanted, found = weights.tensors(theirs), weights.tensors(ours)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5"])
def test_a_head_for_further_tokens_is_left_out(name: str, tmp_path: Path) -> None:
    """Files on the hub hold it beside the model, in any dtype."""
    layout = families.layout(name)
    wanted = folders.decoder(layout.read(layout.examples[0]))
    checkpoints.save(wanted, tmp_path / "model", layout=name)
    extra = {"mtp.fc.weight": torch.ones(4, 8, dtype=torch.bfloat16)}
    folders.edit_tensors(tmp_path / "model" / files.WEIGHTS, lambda held: held.update(extra))
    assert_same(checkpoints.load(tmp_path / "model"), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_shard_bytes": 10_000},
        {"variant": "fused"},
        {"layout": "archloop"},
        {"layout": "archloop", "max_shard_bytes": 10_000},
    ],
    ids=str,
)
def test_round_trip(options: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = folders.decoder(dtype=dtype)
    checkpoints.save(decoder, tmp_path / "model", **options)
    again = checkpoints.load(tmp_path / "model")
    assert not again.training
    assert_same(again, decoder)


def test_untied_head_and_large_vocabulary(tmp_path: Path) -> None:
    decoder = folders.decoder(folders.spec(vocab_size=128_000, tie_embeddings=False))
    checkpoints.save(decoder, tmp_path / "model")
    again = checkpoints.load(tmp_path / "model")
    assert_same(again, decoder)
    assert again(torch.tensor([[127_999]])).shape == (1, 1, 128_000)


def test_a_copy_of_the_tied_head_is_accepted(tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    folders.edit_tensors(
        folder / files.WEIGHTS,
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    )
    assert_same(checkpoints.load(folder), folders.decoder())


def test_a_tied_head_may_be_stored_in_place_of_the_embedding(tmp_path: Path) -> None:
    """As `safetensors.torch.save_model` does, which keeps one name of each shared tensor."""
    folder = folders.whole(tmp_path / "model")
    folders.edit_tensors(
        folder / files.WEIGHTS,
        lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}),
    )
    assert_same(checkpoints.load(folder), folders.decoder())


def _searched(*expansions: float, **attention: Any) -> StackSpec:
    """A stack as a search gives it: what it leaves open takes its default."""
    mixers = MixerSpec(name="short_conv"), MixerSpec(name="gqa", config=attention)
    blocks = tuple(
        BlockSpec(
            mixers=(mixer,),
            channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": expansion}),
        )
        for mixer, expansion in zip(mixers, expansions, strict=True)
    )
    return StackSpec(d_model=64, vocab_size=300, blocks=blocks)


def test_settings_left_open_are_said_as_what_they_come_to(tmp_path: Path) -> None:
    """With the keys that llama.cpp's converter asks for; transformers loads it."""
    decoder = folders.decoder(_searched(2.0, 2.0, head_dim=32))
    checkpoints.save(decoder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / files.CONFIG).read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert config["block_auto_adjust_ff_dim"] is False
    assert (config["block_multiple_of"], config["block_ffn_dim_multiplier"]) == (256, 1.0)
    ids_BT = torch.arange(9)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(theirs(ids_BT).logits, decoder(ids_BT))


@pytest.mark.parametrize(
    "spec, named",
    [
        (_searched(2.0, 3.0), r"lfm2: block 1 has channel_mixer\.d_ff=192.*only say 128"),
        (_searched(2.0, 2.0, scale=0.3), r"lfm2: block 1 has mixers\[0\]\.scale=0\.3"),
        (_searched(2.0, 2.0, qk_norm=False), r"lfm2: block 1 has mixers\[0\]\.qk_norm=False"),
    ],
)
def test_what_a_configuration_cannot_say_is_named(
    spec: StackSpec, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{named}.*layout='archloop'"):
        checkpoints.save(folders.decoder(spec), tmp_path / "model")
    checkpoints.save(folders.decoder(spec), tmp_path / "model", layout="archloop")
    assert checkpoints.load(tmp_path / "model").spec == spec


def test_a_family_and_its_variants_are_chosen_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not of the llama family: block 0 has"):
        checkpoints.save(folders.decoder(), tmp_path / "model", layout="llama")
    with pytest.raises(ValueError, match="unknown checkpoint layout 'lama'; did you mean 'llama'"):
        checkpoints.save(folders.decoder(), tmp_path / "model", layout="lama")
    with pytest.raises(ValueError, match="variant='fussed': did you mean 'fused'"):
        checkpoints.save(folders.decoder(), tmp_path / "model", variant="fussed")


def test_dtype_can_be_chosen(tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    half = checkpoints.load(folder, torch.bfloat16)
    assert_same(half, folders.decoder().to(torch.bfloat16))
    moe: Any = half.blocks[1]
    assert moe.channel_mixer.expert_bias.dtype == torch.float32


def test_a_bias_stored_in_half_precision_becomes_float32(tmp_path: Path) -> None:
    """transformers casts the bias with the model; its values are taken as they are."""
    folder = tmp_path / "model"
    checkpoints.save(folders.decoder(dtype=torch.bfloat16), folder)
    name = "model.layers.1.feed_forward.expert_bias"
    folders.edit_tensors(folder / files.WEIGHTS, lambda t: t.update({name: t[name].bfloat16()}))
    moe: Any = checkpoints.load(folder).blocks[1]
    assert moe.channel_mixer.expert_bias.dtype == torch.float32
    assert torch.all(moe.channel_mixer.loads == 0)


def test_a_bias_that_is_not_stored_is_zero(tmp_path: Path) -> None:
    given = folders.spec().model_dump()
    given["blocks"][1]["channel_mixer"]["config"]["use_bias"] = False
    checkpoints.save(folders.decoder(StackSpec.model_validate(given)), tmp_path / "model")
    moe: Any = checkpoints.load(tmp_path / "model").blocks[1]
    assert torch.all(moe.channel_mixer.expert_bias == 0)


def test_configuration_may_not_contradict_the_stored_dtype(tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    folders.edit_json(folder / files.CONFIG, lambda c: c.update(dtype="bfloat16"))
    with pytest.raises(ValueError, match=r"stored as float32.*says bfloat16.*dtype="):
        checkpoints.load(folder)
    checkpoints.load(folder, torch.float32)


def test_our_layout_takes_any_stack(tmp_path: Path) -> None:
    """Shared weights are stored once; shared features, parallel mixers and no mixer build again."""
    gqa = {"name": "gqa", "config": {"head_dim": 16}}
    conv, dense = MixerSpec(name="short_conv"), ChannelMixerSpec(name="swiglu")
    blocks = (
        BlockSpec(mixers=(MixerSpec(**gqa), conv), channel_mixer=dense, post_norms=True),
        BlockSpec(mixers=(MixerSpec(**gqa, state_from=0),), residual_multiplier=0.5),
        BlockSpec(mixers=(MixerSpec(**gqa, weights_from=0),), channel_mixer=dense),
        BlockSpec(channel_mixer=dense),
    )
    spec = StackSpec(d_model=32, vocab_size=50, blocks=blocks, logits_divisor=3.0)
    decoder = folders.decoder(spec)
    checkpoints.save(decoder, tmp_path / "model", layout="archloop")
    with safe_open(tmp_path / "model" / files.WEIGHTS, "pt") as file:
        assert not any(name.startswith("blocks.2.mixers.0") for name in file.keys())  # noqa: SIM118
    again = checkpoints.load(tmp_path / "model")
    assert again.spec == spec
    assert_same(again, decoder)
    ids_BT = torch.arange(9)[None]
    assert torch.equal(again(ids_BT), decoder(ids_BT))
    again.to(torch.bfloat16)
    checkpoints.save(again, tmp_path / "half", layout="archloop")
    assert_same(checkpoints.load(tmp_path / "half"), again)


def _shared_pair(name: str) -> StackSpec:
    first, second = MixerSpec(name=name), MixerSpec(name=name, weights_from=0)
    blocks = (BlockSpec(mixers=(first,)), BlockSpec(mixers=(second,)), BlockSpec(mixers=(first,)))
    return StackSpec(d_model=64, vocab_size=32, blocks=blocks)


@pytest.mark.parametrize("name", registry.names("mixers"))
def test_every_mixer_loads_in_another_dtype_as_it_is_cast(name: str, tmp_path: Path) -> None:
    """Poles and time steps stay float32 in both, and shared weights are one."""
    decoder = Decoder(_shared_pair(name))
    checkpoints.save(decoder, tmp_path / "model", layout="archloop")
    for dtype in (None, torch.bfloat16):
        again = checkpoints.load(tmp_path / "model", dtype)
        want, found = decoder.to(dtype).state_dict(), again.state_dict()
        for key, tensor in want.items():
            assert found[key].dtype == tensor.dtype, key
            assert torch.equal(found[key], tensor), key
        assert len(list(again.parameters())) == len(list(decoder.parameters()))


FRESH = """
import sys, torch
from archloop import checkpoints
checkpoints.load(sys.argv[1])
"""


def test_structured_state_spaces_load_in_a_fresh_process(tmp_path: Path) -> None:
    """Their start values are computed, which the meta device cannot do."""
    blocks = tuple(BlockSpec(mixers=(MixerSpec(name=name),)) for name in ("s4", "s5"))
    spec = StackSpec(d_model=64, vocab_size=32, blocks=blocks)
    checkpoints.save(Decoder(spec), tmp_path / "model", layout="archloop")
    command = [sys.executable, "-c", FRESH, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda s: s.update(d_model=-1), r"spec\.json.*d_model"),
        (lambda s: s.update(surprise=1), r"spec\.json.*surprise"),
        (lambda s: s["blocks"][0]["mixers"][0].update(name="gqaa"), "did you mean 'gqa'"),
        (lambda s: s.update(vocab_size=41), "embedding.weight.*shape"),
    ],
)
def test_a_damaged_spec_is_refused(change: Any, named: str, tmp_path: Path) -> None:
    checkpoints.save(folders.decoder(), tmp_path / "model", layout="archloop")
    folders.edit_json(tmp_path / "model" / files.SPEC, change)
    with pytest.raises(ValueError, match=f"(?s){named}"):
        checkpoints.load(tmp_path / "model")


def test_shards_hold_at_most_their_bytes(tmp_path: Path) -> None:
    folder = folders.sharded(tmp_path / "model")
    index = json.loads((folder / files.INDEX).read_text())
    sizes = [path.stat().st_size for path in sorted(folder.glob("model-*"))]
    assert max(sizes) < 20_000 + 4_000
    assert set(index["weight_map"].values()) == {p.name for p in folder.glob("model-*")}


def test_saving_again_leaves_no_old_shard_and_keeps_the_tokenizer(tmp_path: Path) -> None:
    folder = folders.sharded(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    checkpoints.save(folders.decoder(), folder)
    assert {p.name for p in folder.iterdir()} == {"config.json", files.WEIGHTS, "tokenizer.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.whole(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("archloop.stack.weights.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(folders.decoder(), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_saving_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    folders.whole(tmp_path / "model")
    (tmp_path / "latest").symlink_to("model")
    checkpoints.save(folders.decoder(folders.spec(vocab_size=41)), tmp_path / "latest")
    assert checkpoints.load(tmp_path / "model").spec.vocab_size == 41
    assert {path.name for path in tmp_path.iterdir()} == {"model", "latest"}


def test_who_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in folders.sharded(tmp_path / "m").iterdir()}
    assert modes == {(tmp_path / "m").stat().st_mode & 0o666}


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not a checkpoint.*save to a new folder"):
        checkpoints.save(folders.decoder(), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


MEMORY = """
import sys
import torch
from archloop import checkpoints

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))

def watch(frame, event, function):
    # Memory is taken inside compiled functions: as each returns, what it made stands beside what
    # it read. A thread that samples would miss the peak whenever the machine is busy.
    global peak
    if event == "c_return":
        peak = max(peak, anonymous())

dtype = None if sys.argv[2] == "none" else getattr(torch, sys.argv[2])
checkpoints.load(sys.argv[3])  # Imports and pools, on a tiny model.
base = peak = anonymous()
sys.setprofile(watch)
decoder = checkpoints.load(sys.argv[1], dtype)
sys.setprofile(None)
sizes = [t.nbytes for t in [*decoder.parameters(), *decoder.buffers()]]
print(peak - base, sum(sizes), max(sizes))
"""


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "dtype, shard_bytes", [("none", 20 << 20), ("bfloat16", 1 << 30)], ids=["shards", "cast"]
)
def test_peak_memory_is_the_model_and_one_tensor(
    dtype: str, shard_bytes: int, tmp_path: Path
) -> None:
    """Anonymous memory while loading, watched from within a fresh process."""
    moe = ChannelMixerSpec(name="moe", config={"num_experts": 16, "top_k": 2})
    blocks = tuple(
        BlockSpec(mixers=(MixerSpec(name="short_conv"),), channel_mixer=moe) for _ in range(3)
    )
    spec = StackSpec(d_model=256, vocab_size=16_000, blocks=blocks)
    checkpoints.save(Decoder(spec), tmp_path / "model", max_shard_bytes=shard_bytes)
    tiny = folders.whole(tmp_path / "tiny")
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "model"), dtype, str(tiny)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak, model, largest = map(int, out.split())
    assert model > (25 << 20)
    assert model * 0.9 < peak <= model + largest
