"""The LFM2 family's published sizes, by formula and, at small width, by building."""

import pytest
import torch

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
}
ACTIVE = {"lfm2-8b-a1b": 1_557_740_288, "lfm2-24b-a2b": 2_326_879_488}
KV_BYTES_PER_TOKEN = {"lfm2-350m": 12_288, "lfm2-2.6b": 16_384, "lfm2-24b-a2b": 20_480}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    spec = presets.load(name)
    assert cost.num_params(spec) == PUBLISHED[name]
    assert cost.num_active_params(spec) == ACTIVE.get(name, PUBLISHED[name])


@pytest.mark.parametrize("name", PUBLISHED)
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
