"""Logits of loaded checkpoints against transformers, in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from archloop import checkpoints
from archloop.blocks.ops.rope import rotate
from archloop.checkpoints import families
from archloop.stack import presets
from archloop.stack.decoder import Decoder
from oracles import lfm2_peer

TOLERANCE = 1e-5
NAMES = (*lfm2_peer.DENSE, *lfm2_peer.MOE)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    peer = lfm2_peer.model(lfm2_peer.config(request.param))
    folder = lfm2_peer.saved(peer, tmp_path_factory.mktemp(request.param))
    return checkpoints.load(folder), peer


def ids_of(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, lfm2_peer.VOCAB, shape, generator=generator)


def assert_same_weights(ours: Any, theirs: Any) -> None:
    found, wanted = ours.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.no_grad()
def test_logits_agree(pair: Any) -> None:
    ours, peer = pair
    ids_BT = ids_of((2, 37))
    assert lfm2_peer.relative_error(ours(ids_BT), peer(ids_BT).logits) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_padded_rows_agree(pair: Any, side: str) -> None:
    ours, peer = pair
    ids_BT, mask_BT = ids_of((3, 19)), torch.ones(3, 19, dtype=torch.bool)
    for row, pads in ((1, 5), (2, 17)):
        columns = slice(0, pads) if side == "left" else slice(19 - pads, 19)
        mask_BT[row, columns] = False
        ids_BT[row, columns] = 0
    theirs = peer(ids_BT, attention_mask=mask_BT.long()).logits
    assert lfm2_peer.relative_error(ours(ids_BT, mask_BT=mask_BT)[mask_BT], theirs[mask_BT]) <= (
        TOLERANCE
    )


@torch.no_grad()
def test_cached_continuation_agrees(pair: Any) -> None:
    """Prefill, a step, a second prefill on the warm state (transformers #42017), a step."""
    ours, peer = pair
    ids_BT = ids_of((2, 24))
    state = ours.init_state(2, 24)
    reference = peer(ids_BT).logits
    cache = None
    for start, end in ((0, 9), (9, 10), (10, 23), (23, 24)):
        chunk = ids_BT[:, start:end]
        theirs = peer(chunk, past_key_values=cache, use_cache=True)
        cache = theirs.past_key_values
        logits = ours(chunk, state)
        assert lfm2_peer.relative_error(logits, theirs.logits) <= TOLERANCE
        assert lfm2_peer.relative_error(logits, reference[:, start:end]) <= TOLERANCE


@torch.no_grad()
def test_what_we_save_loads_in_transformers(pair: Any, tmp_path: Path) -> None:
    ours, peer = pair
    ids_BT = ids_of((2, 11))
    checkpoints.save(ours, tmp_path / "whole")
    checkpoints.save(ours, tmp_path / "cut", max_shard_bytes=100_000, variant="fused")
    for folder in (tmp_path / "whole", tmp_path / "cut"):
        again, report = type(peer).from_pretrained(folder, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
        assert_same_weights(again, peer)
        logits = again.eval()(ids_BT).logits
        assert lfm2_peer.relative_error(logits, peer(ids_BT).logits) <= TOLERANCE


@torch.no_grad()
def test_rotation_agrees_at_far_positions() -> None:
    """One rounding more in a frequency turns a token at 128,000 by a visible angle."""
    peer = lfm2_peer.model(lfm2_peer.config("lfm2-350m"))
    modeling = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    head_dim = peer.config.hidden_size // peer.config.num_attention_heads
    q_BNTH = torch.randn(1, 2, 4, head_dim, generator=torch.Generator().manual_seed(0))
    positions_BT = torch.tensor([[0, 1, 32_767, 127_999]])
    cos, sin = peer.model.rotary_emb(q_BNTH, positions_BT)
    theirs, _ = modeling.apply_rotary_pos_emb(q_BNTH, q_BNTH, cos, sin)
    assert torch.equal(rotate(q_BNTH, positions_BT, 1e6), theirs)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        {"conv_bias": True},
        {"conv_L_cache": 5},
        {"tie_word_embeddings": False},
        {"norm_eps": 1e-3},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        {"head_dim": 24},
        {"use_expert_bias": False},
        {"norm_topk_prob": False},
        {"routed_scaling_factor": 2.5},
        {"num_dense_layers": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_that_matters(change: dict[str, Any], tmp_path: Path) -> None:
    """Each against transformers, in and out; a setting that we ignored would show here."""
    settings = lfm2_peer.config("lfm2-8b-a1b", **change)
    peer = lfm2_peer.model(settings)
    ours = checkpoints.load(lfm2_peer.saved(peer, tmp_path / "theirs"))
    ids_BT = ids_of((1, 15))
    reference = peer(ids_BT).logits
    assert lfm2_peer.relative_error(ours(ids_BT), reference) <= TOLERANCE
    checkpoints.save(ours, tmp_path / "ours")
    again = type(peer).from_pretrained(tmp_path / "ours").eval()
    assert_same_weights(again, peer)
    assert lfm2_peer.relative_error(again(ids_BT).logits, reference) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_that_transformers_writes_loads(dtype: torch.dtype, tmp_path: Path) -> None:
    """Experts apart and fused, in one file and in shards."""
    peer = lfm2_peer.model(lfm2_peer.config("lfm2-24b-a2b"), dtype=dtype)
    separate = lfm2_peer.saved(peer, tmp_path / "a", save_original_format=True)
    fused = lfm2_peer.saved(peer, tmp_path / "b", save_original_format=False)
    shards = lfm2_peer.saved(peer, tmp_path / "c", max_shard_size="200KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    ids_BT = ids_of((1, 9))
    first, *others = (checkpoints.load(folder) for folder in (separate, fused, shards))
    assert first.embedding.weight.dtype == dtype
    for other in others:
        assert torch.equal(first(ids_BT), other(ids_BT))
    checkpoints.save(first, tmp_path / "ours")
    assert_same_weights(type(peer).from_pretrained(tmp_path / "ours", dtype=dtype), peer)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_full_layouts_agree(name: str, tmp_path: Path) -> None:
    """Few tokens: of 10,000 expert choices one is a tie to within fp32, where either is right."""
    peer = lfm2_peer.model(lfm2_peer.config(name, num_layers=None))
    ours = checkpoints.load(lfm2_peer.saved(peer, tmp_path))
    ids_BT = ids_of((1, 12))
    assert lfm2_peer.relative_error(ours(ids_BT), peer(ids_BT).logits) <= TOLERANCE


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["lfm2-350m", "lfm2-1.2b"])
def test_full_size_agrees(name: str, tmp_path: Path) -> None:
    """Ours saved, transformers loads: both at full size in fp32, one after the other."""
    torch.manual_seed(0)
    decoder = Decoder(presets.load(name)).eval()
    ids_BT = torch.randint(1, 65_536, (1, 24))
    ours = decoder(ids_BT)
    checkpoints.save(decoder, tmp_path)
    del decoder
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Lfm2ForCausalLM.from_pretrained(tmp_path).eval()(ids_BT).logits
    assert lfm2_peer.relative_error(ours, theirs) <= TOLERANCE
    assert lfm2_peer.relative_error(checkpoints.load(tmp_path)(ids_BT), ours) == 0


def test_expert_bias_is_used_in_these_tests() -> None:
    peer = lfm2_peer.model(lfm2_peer.config("lfm2-8b-a1b"))
    biases = [b for name, b in peer.named_buffers() if name.endswith("expert_bias")]
    assert biases
    assert all(bias.abs().min() > 0 for bias in biases)


@pytest.mark.parametrize("name", NAMES)
def test_preset_configurations_round_trip(name: str) -> None:
    spec = presets.load(name)
    layout = families.layout("lfm2")
    assert layout.read(layout.write(spec)) == spec
