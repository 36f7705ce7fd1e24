"""Pieces of stacks: which there are, whose weights they have, how they are kept."""

from importlib import metadata
from pathlib import Path

import pytest
import torch

from archloop import registry
from archloop.runtimes import pieces
from archloop.runtimes.block_cache import BlockCache
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

CONV, GQA = MixerSpec(name="short_conv"), MixerSpec(name="gqa", config={"head_dim": 32})
SWIGLU = ChannelMixerSpec(name="swiglu")


def stack(*blocks: BlockSpec) -> StackSpec:
    return StackSpec(d_model=64, vocab_size=32, blocks=blocks)


def block(mixer: MixerSpec = CONV, channel: ChannelMixerSpec | None = SWIGLU) -> BlockSpec:
    return BlockSpec(mixers=(mixer,), channel_mixer=channel)


def test_a_stack_is_its_embedding_halves_of_blocks_and_head() -> None:
    found = pieces.pieces(stack(block(), block(GQA), BlockSpec(channel_mixer=SWIGLU)))
    parts = [(each.piece.part, each.block) for each in found]
    assert parts == [
        ("embedding", None),
        ("mixers", 0),
        ("channel", 0),
        ("mixers", 1),
        ("channel", 1),
        ("channel", 2),
        ("head", None),
    ]
    assert found[2].piece == found[4].piece == found[5].piece
    assert len({each.piece.digest for each in found}) == 5


def test_a_piece_is_known_by_what_it_computes_alone() -> None:
    few, many = stack(block(GQA)), stack(block(), block(GQA)).replace(vocab_size=99)
    assert pieces.pieces(few)[1].piece == pieces.pieces(many)[3].piece
    other = few.replace(norm_eps=1e-6)
    assert pieces.pieces(few)[1].piece != pieces.pieces(other)[1].piece


def test_shared_weights_are_one_copy_and_others_are_not() -> None:
    lent = CONV.model_copy(update={"weights_from": 0})
    found = pieces.pieces(stack(block(), block(lent), block()))
    mixers = [each for each in found if each.piece.part == "mixers"]
    assert [each.weights for each in mixers] == [0, 0, 2]
    assert len({each.piece for each in mixers}) == 1


def test_what_depends_on_other_blocks_is_inseparable() -> None:
    reads = GQA.model_copy(update={"state_from": 0})
    reason = pieces.inseparable(stack(block(GQA), block(reads)))
    assert reason == "block 1 reads the state of block 0"
    reason = pieces.inseparable(stack(block(MixerSpec(name="hgrn2"))))
    assert reason == "block 0: hgrn2 depends on its place in the stack"
    wide = MixerSpec(name="gqa", config={"head_dim": 32, "beside_embedding": True})
    reason = pieces.inseparable(stack(block(), block(wide)))
    assert reason == "block 1 reads the embedding beside the stream"
    assert pieces.inseparable(stack(block(), block(GQA))) is None


def test_halves_that_share_weights_and_are_no_copies_are_inseparable() -> None:
    def beside(*mixers: MixerSpec) -> BlockSpec:
        return BlockSpec(mixers=mixers, combine="mean")

    lent = GQA.model_copy(update={"weights_from": 0})
    mamba2 = MixerSpec(name="mamba2")
    no_copy = "block 1 has weights of block 0 and is no copy of it"
    alone = "block 1 has weights of another block in some of its mixers alone"
    assert pieces.inseparable(stack(beside(GQA, CONV), block(lent))) == no_copy
    assert pieces.inseparable(stack(beside(GQA, mamba2), beside(lent, CONV))) == alone
    assert pieces.inseparable(stack(beside(GQA, CONV), beside(lent, CONV))) == alone
    other = block(GQA).model_copy(update={"residual_multiplier": 0.5})
    borrows = other.model_copy(update={"mixers": (lent,)})
    assert pieces.inseparable(stack(block(GQA), borrows)) == no_copy
    assert pieces.inseparable(stack(other, borrows)) is None


def test_a_stack_has_the_weights_of_its_pieces() -> None:
    spec = stack(block(), block(GQA), block()).replace(tie_embeddings=False)
    decoder = pieces.assembled(spec)
    found = {each.piece.part: each.piece for each in pieces.pieces(spec)}
    head = pieces.build(found["head"])
    assert decoder.head is not None
    assert head.head is not None
    torch.testing.assert_close(decoder.head.weight, head.head.weight, rtol=0, atol=0)
    first, _, third = decoder.each_block()
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, third.state_dict()[name], rtol=0, atol=0)
    channel = next(pieces.build(found["channel"]).each_block()).state_dict()
    name = next(name for name in channel if name.startswith("channel_mixer."))
    torch.testing.assert_close(first.state_dict()[name], channel[name], rtol=0, atol=0)


def test_a_tied_head_has_the_embedding_of_its_stack() -> None:
    spec = stack(block())
    embedding, *_, head = (pieces.build(each.piece) for each in pieces.pieces(spec))
    torch.testing.assert_close(embedding.output_weight, head.output_weight, rtol=0, atol=0)
    found = pieces.assembled(spec).output_weight
    torch.testing.assert_close(found, head.output_weight, rtol=0, atol=0)


class Lowering:
    """Counts, and writes a file."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, piece: pieces.Piece, home: Path) -> dict[str, int]:
        self.calls += 1
        (home / "model").write_bytes(piece.digest.encode())
        return {"float32": 8}


@pytest.fixture
def piece() -> pieces.Piece:
    return pieces.pieces(stack(block()))[1].piece


def test_a_piece_is_lowered_once_for_a_runtime_version_and_quantisation(
    piece: pieces.Piece, tmp_path: Path
) -> None:
    lower = Lowering()
    cache = BlockCache("engine", "1", "fp32", tmp_path)
    home, weight_bytes = cache.get(piece, lower)
    assert (home / "model").read_bytes() == piece.digest.encode()
    assert cache.get(piece, lower) == (home, weight_bytes) == (home, {"float32": 8})
    assert (lower.calls, cache.hits, cache.misses) == (1, 1, 1)
    for other in ("engine", "2", "fp32"), ("engine", "1", "int8"), ("another", "1", "fp32"):
        BlockCache(*other, tmp_path).get(piece, lower)
    assert lower.calls == 4


def test_what_is_kept_hangs_on_the_packages_that_write_it_too() -> None:
    class Written(TorchEager):
        writers = ("pytest", "no-such-package")

    with_others = f"{TorchEager().version()}+pytest{metadata.version('pytest')}+no-such-package-"
    assert (TorchEager().written_by(), Written().written_by()) == (
        TorchEager().version(),
        with_others,
    )
    for name in ("onnx_runtime", "openvino", "executorch", "llama_cpp"):
        assert "torch" in registry.get("runtimes", name).writers
    assert "gguf" in registry.get("runtimes", "llama_cpp").writers
    for name in ("onnx_runtime", "openvino"):
        assert "onnx_ir" in registry.get("runtimes", name).writers


def test_what_is_kept_hangs_on_all_code_that_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    pieces._own_code.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(pieces, "_add_code", lambda digest, folder: read.add(folder.name))
        pieces.code_digest()
    pieces._own_code.cache_clear()
    # A GGUF file has the tensors that a layout of checkpoints names.
    assert read >= {"blocks", "checkpoints", "runtimes", "stack"}


@pytest.mark.parametrize("damage", ["changed", "lost", "index"])
def test_a_damaged_piece_is_lowered_again(piece: pieces.Piece, tmp_path: Path, damage: str) -> None:
    lower = Lowering()
    cache = BlockCache("engine", "1", "fp32", tmp_path)
    home, _ = cache.get(piece, lower)
    if damage == "changed":
        (home / "model").write_bytes(b"x")
    elif damage == "lost":
        (home / "model").unlink()
    else:
        (home / "piece.json").write_text("{")
    assert cache.get(piece, lower)[0] == home
    assert (home / "model").read_bytes() == piece.digest.encode()
    assert lower.calls == 2


def test_a_failed_lowering_leaves_nothing(piece: pieces.Piece, tmp_path: Path) -> None:
    def fails(piece: pieces.Piece, home: Path) -> dict[str, int]:
        (home / "model").write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        BlockCache("engine", "1", "fp32", tmp_path).get(piece, fails)
    assert list(tmp_path.iterdir()) == []
