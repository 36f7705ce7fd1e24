"""Published sizes, by formula and by building, and presets of any family."""

from pathlib import Path

import pytest
import torch

from archloop import registry
from archloop.errors import UserError
from archloop.stack import cost, presets
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec

PUBLISHED = {
    "lfm2-350m": 354_483_968,
    "lfm2-700m": 742_489_344,
    "lfm2-1.2b": 1_170_340_608,
    "lfm2-2.6b": 2_569_272_320,
    "lfm2-8b-a1b": 8_339_929_856,
    "lfm2-24b-a2b": 23_843_659_008,
    "lfm3-1.7b": 1_728_801_536,
    "llama-3.2-1b": 1_235_814_400,
    "qwen3-1.7b": 1_720_574_976,
    "smollm2-135m": 134_515_008,
    "mamba2-370m": 368_346_624,
    "gemma-3-1b": 999_885_952,
    "nemotron-h-8b": 8_100_852_736,
    "lfm2.5-230m": 229_693_184,
    "lfm2.5-2.6b": 2_697_198_592,
    "lfm2.5-8b-a1b": 8_467_856_128,
    "granite-4.0-h-350m": 340_332_224,
    "falcon-h1-0.5b": 521_411_104,
    "kimi-linear-48b-a3b": 49_122_675_072,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "zamba2-1.2b": 1_215_064_704,
    "granite-4.0-h-tiny": 6_939_037_248,
    "nemotron-3-nano-30b-a3b": 31_577_937_344,
    "qwen3.5-4b": 4_205_751_296,
    "qwen3.5-35b-a3b": 34_660_610_688,
}
HYBRIDS = [name for name in PUBLISHED if name.startswith("lfm")]
ACTIVE = {
    "lfm2-8b-a1b": 1_557_740_288,
    "lfm2-24b-a2b": 2_326_879_488,
    "lfm2.5-8b-a1b": 1_685_666_560,
    "kimi-linear-48b-a3b": 3_484_453_248,
    "qwen3-next-80b-a3b": 3_874_929_408,
    "granite-4.0-h-tiny": 1_465_470_528,
    "nemotron-3-nano-30b-a3b": 3_580_073_408,
    "qwen3.5-35b-a3b": 3_454_988_928,
}
KV_BYTES_PER_TOKEN = {
    "lfm2-350m": 12_288,
    "lfm2-2.6b": 16_384,
    "lfm2-24b-a2b": 20_480,
    "qwen3.5-4b": 32_768,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    spec = presets.load(name)
    assert cost.num_params(spec) == PUBLISHED[name]
    assert cost.num_active_params(spec) == ACTIVE.get(name, PUBLISHED[name])


def test_specs_from_before_a_field_keep_their_text() -> None:
    """And so their digests, by which files and studies know them."""
    assert "norm_offset" not in presets.load("lfm2-350m").to_json()
    offset = presets.load("gemma-3-1b")
    assert StackSpec.from_json(offset.to_json()) == offset != offset.replace(norm_offset=False)


@pytest.mark.parametrize("name", HYBRIDS)
def test_twin_keeps_total_and_active_parameters(name: str) -> None:
    spec, twin = presets.load(name), presets.load(name + "-attention")
    assert set(twin.layout) == {"gqa"}
    assert twin.num_blocks == spec.num_blocks
    for count in (cost.num_params, cost.num_active_params):
        assert count(twin) == pytest.approx(count(spec), rel=1e-3)


@pytest.mark.parametrize("name", KV_BYTES_PER_TOKEN)
def test_state_grows_by_the_published_kv_bytes(name: str) -> None:
    spec = presets.load(name)
    growth = cost.state_bytes(spec, 32_768) - cost.state_bytes(spec, 4_096)
    assert growth == KV_BYTES_PER_TOKEN[name] * (32_768 - 4_096)


@pytest.mark.parametrize("name", presets.names())
def test_built_decoder_has_the_counted_parameters(name: str) -> None:
    with torch.device("meta"):
        decoder = Decoder(presets.load(name))
    assert sum(p.numel() for p in decoder.parameters()) == cost.num_params(decoder.spec)


def test_lfm3_holds_as_little_as_its_card_says() -> None:
    """1.6 GB of KV cache at 128K: six blocks of full attention, five rings of 256."""
    assert cost.state_bytes(presets.load("lfm3-1.7b"), 131_072) == pytest.approx(1.61e9, rel=5e-3)


def test_a_stack_of_attention_alone_has_no_twin() -> None:
    assert "llama-3.2-1b-attention" not in presets.names()
    with pytest.raises(ValueError, match="alone is its own twin"):
        presets.twin(presets.load("llama-3.2-1b"))


RELU2 = """
d_model: 64
vocab_size: 99
block_types:
  M: {mixer: {name: mamba2}}
  F: {channel_mixer: {name: relu2}}
  P: {mixers: [{name: gqa}, {name: mamba2}], combine: normed_mean, post_norms: true}
pattern: MFPF
"""


def test_presets_of_any_kind_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block may lack a half, or have mixers in parallel; twins only where one can be made."""
    monkeypatch.setattr(presets, "_FOLDER", tmp_path)
    (tmp_path / "odd.yaml").write_text(RELU2)
    assert presets.names() == ["odd"]
    assert presets.load("odd").layout == ["mamba2", "-", "gqa+mamba2", "-"]
    assert cost.num_params(presets.load("odd")) > 0
    with pytest.raises(ValueError, match="unknown preset 'odd-attention'"):
        presets.load("odd-attention")


def test_a_broken_preset_of_a_plugins_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_folders", {})
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "bad.yaml").write_text("d_model: 64")
    registry.add_folder(tmp_path)
    with pytest.raises(UserError, match=r"preset .*bad.yaml: .*block_types.*; correct it"):
        presets.names()


def test_unknown_preset_names_near_ones() -> None:
    with pytest.raises(ValueError, match="lfm2-350m"):
        presets.load("lfm2-350")


def test_json_round_trip_and_digest() -> None:
    spec = presets.load("lfm2-8b-a1b")
    again = type(spec).from_json(spec.to_json())
    assert again == spec
    assert again.digest == spec.digest
    assert presets.load("lfm2-350m").digest != spec.digest


def test_whole_numbers_are_one_setting_however_they_are_written() -> None:
    spec = presets.load("lfm2-350m")
    text = spec.to_json()
    assert '"head_dim":64' in text
    other = StackSpec.from_json(text.replace('"head_dim":64', '"head_dim":64.0'))
    assert other == spec
    assert (other.digest, hash(other)) == (spec.digest, hash(spec))


def test_a_twin_keeps_the_factors_of_its_preset() -> None:
    name = "falcon-h1-0.5b"
    block, twin = presets.load(name).blocks[0], presets.load(f"{name}-attention")
    assert block.channel_mixer is not None
    assert {each.multiplier for each in (*block.mixers, block.channel_mixer)} != {1.0}
    for other in twin.blocks:
        assert other.mixers == (block.mixers[1],)
        assert other.channel_mixer is not None
        assert other.channel_mixer.multiplier == block.channel_mixer.multiplier
