"""Generation through the CUDA engine: the same tokens as through the decoder, over one state."""

import pytest
import torch

from archloop.generation.generation import generate
from archloop.generation.sampling import Sampling
from archloop.generation.transcript import Transcript
from archloop.runtimes.cuda.model import CudaModel
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

DRAWN = Sampling(temperature=0.8, top_k=20, seed=3)


def spec(*mixers: str) -> StackSpec:
    dense = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    blocks = [BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=dense) for name in mixers]
    return StackSpec(d_model=128, vocab_size=200, blocks=tuple(blocks))


def both(device: str = "cpu", dtype: torch.dtype = torch.float64) -> tuple[Decoder, CudaModel]:
    torch.manual_seed(0)
    decoder = Decoder(spec("short_conv", "gla", "gqa", "swa")).to(device, dtype).eval()
    return decoder, CudaModel(decoder, kernels=device == "cuda")


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("prompts", [[[5, 7, 9]], [[1, 2, 3, 4], [9]]], ids=["one", "ragged"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_tokens_are_the_decoders_own(
    sampling: Sampling, prompts: list[list[int]], chunk_size: int | None
) -> None:
    decoder, model = both()
    want, got = (
        generate(each, prompts, 12, sampling, chunk_size=chunk_size) for each in (decoder, model)
    )
    assert got == want


def test_a_conversation_goes_on_and_forks() -> None:
    decoder, model = both()
    replies = []
    for each in (decoder, model):
        transcript = Transcript(each, 64, 2)
        first = generate(each, [[1, 2], [3]], 6, transcript=transcript)
        fork = transcript.fork()
        second = generate(each, [[4], [5, 6]], 6, transcript=transcript)
        other = generate(each, [[7], [8]], 6, transcript=fork)
        replies.append((first, second, other))
    assert replies[0] == replies[1]


def test_a_full_state_and_wrong_chunks_are_refused() -> None:
    _, model = both()
    state = model.init_state(1, 3)
    with pytest.raises(ValueError, match="max_context=3"):
        model.prefill(torch.ones(1, 4, dtype=torch.int64), state)
    with pytest.raises(ValueError, match="at least one token"):
        model.prefill(torch.ones(1, 0, dtype=torch.int64), state)
    model.prefill(torch.ones(1, 3, dtype=torch.int64), state)
    with pytest.raises(ValueError, match="max_context=3"):
        model.step(torch.ones(1, dtype=torch.int64), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 2])
def test_captured_generation_follows_the_decoder(batch: int) -> None:
    """Under one list of tokens, since 16 bits may choose another where two are near a tie."""
    decoder, model = both("cuda", torch.bfloat16)
    ids = torch.randint(0, 200, (batch, 40), device="cuda")
    plain, mine = decoder.init_state(batch, 64), model.init_state(batch, 64)
    outputs = []
    for each, state in ((decoder, plain), (model, mine)):
        rows = [each.prefill(ids[:, :20], state)]
        rows += [each.step(ids[:, t], state).clone() for t in range(20, 40)]
        outputs.append(torch.stack(rows).double())
    assert float((outputs[1] - outputs[0]).norm() / outputs[0].norm()) < 5e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_state_is_captured_anew() -> None:
    decoder, model = both("cuda", torch.bfloat16)
    ids = torch.randint(0, 200, (1, 8), device="cuda")
    for room in (16, 300, 32):
        state, plain = model.init_state(1, room), decoder.init_state(1, room)
        model.prefill(ids, state)
        decoder.prefill(ids, plain)
        got, want = model.step(ids[:, 0], state), decoder.step(ids[:, 0], plain)
        assert float((got - want).double().norm() / want.double().norm()) < 5e-2
