"""Generation on small random models: turns, ragged rows, forks, drafts, stops, seeds."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from archloop import registry
from archloop.errors import UserError
from archloop.generation.drafts import verify
from archloop.generation.generation import Generation, generate
from archloop.generation.sampling import Sampling, choose
from archloop.generation.transcript import Transcript
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.stack.state import DecoderState

VOCAB = 61
SAMPLED = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.2, seed=7)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Convolution and attention, dense and sparse, in float64 so that no tie can flip."""
    conv = MixerSpec(name="short_conv")
    attention = MixerSpec(name="gqa", config={"head_dim": 16})
    dense = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    sparse = ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2})
    pairs = [(conv, dense), (attention, sparse), (conv, sparse), (attention, dense)]
    blocks = tuple(BlockSpec(mixers=(m,), channel_mixer=c) for m, c in pairs)
    torch.manual_seed(0)
    built = Decoder(StackSpec(d_model=64, vocab_size=VOCAB, blocks=blocks))
    return built.double().eval()


def plain(decoder: Decoder, prompt: Sequence[int], num: int) -> list[int]:
    """Greedy decoding without any state: everything anew for each token."""
    ids = list(prompt)
    for _ in range(num):
        with torch.no_grad():
            ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def num_processed(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts, from now on, the tokens of each pass through the decoder."""
    counts: list[int] = []
    embed = decoder.embed
    monkeypatch.setattr(decoder, "embed", lambda ids: (counts.append(ids.numel()), embed(ids))[1])
    return counts


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_greedy_is_plain_decoding(decoder: Decoder, chunk_size: int | None) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    (reply,) = generate(decoder, prompt, 12, chunk_size=chunk_size)
    assert reply.ids == plain(decoder, prompt, 12)
    assert reply.ended == "length"


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_ragged_rows_do_not_depend_on_neighbours(decoder: Decoder, sampling: Sampling) -> None:
    rows = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [2, 7, 1], [8, 2, 8, 1, 8]]
    seeds = [11, 12, 13, 14]
    together = generate(decoder, rows, 10, sampling, seeds=seeds, chunk_size=3)
    for row, seed, reply in zip(rows, seeds, together, strict=True):
        (alone,) = generate(decoder, row, 10, sampling, seeds=[seed])
        assert reply == alone


def test_second_turn_reads_only_what_is_new(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm second prefill is right (transformers #42017) and short (llama.cpp #21099)."""
    transcript = Transcript(decoder, 64)
    (first,) = generate(decoder, [3, 1, 4, 1, 5], 6, transcript=transcript)
    counts = num_processed(decoder, monkeypatch)
    (second,) = generate(decoder, [9, 2, 6], 5, transcript=transcript)
    assert counts == [1 + 3, 1, 1, 1, 1]
    monkeypatch.undo()
    assert second.ids == plain(decoder, [3, 1, 4, 1, 5, *first.ids, 9, 2, 6], 5)


def test_rows_that_stop_early_keep_their_state(decoder: Decoder) -> None:
    """A row that ended steps along with the others, which must leave no trace in its state."""
    rows = [[3, 1, 4], [7, 7, 2, 5, 6], [9]]
    free = generate(decoder, rows, 12)
    stop = free[1].ids[2]
    transcript = Transcript(decoder, 64, batch_size=3)
    first = generate(decoder, rows, 12, stop_ids=[stop], transcript=transcript)
    assert first[1].ids == free[1].ids[: free[1].ids.index(stop) + 1]
    assert first[1].ended == "stop_id"
    assert len({len(reply.ids) for reply in first}) > 1
    second = generate(decoder, [[1], [2, 3], [4]], 6, transcript=transcript)
    for row, new, one, two in zip(rows, [[1], [2, 3], [4]], first, second, strict=True):
        assert two.ids == plain(decoder, [*row, *one.ids, *new], 6)


def test_a_long_row_that_stopped_early_leaves_room(decoder: Decoder) -> None:
    """Its steps along with the others are no tokens, so the next turn may use all the room."""
    rows = [[3, 1, 4, 1, 5, 9, 2, 6], [9]]
    stop = plain(decoder, rows[0], 1)
    assert stop[0] not in plain(decoder, rows[1], 8)
    transcript = Transcript(decoder, 15, batch_size=2)
    first = generate(decoder, rows, 8, stop_ids=stop, transcript=transcript)
    assert [len(reply.ids) for reply in first] == [1, 8]
    second = generate(decoder, [[1], [2]], 6, transcript=transcript)
    for row, new, one, two in zip(rows, [[1], [2]], first, second, strict=True):
        assert two.ids == plain(decoder, [*row, *one.ids, *new], 6)


def test_right_padded_prefill_keeps_the_last_real_tokens(decoder: Decoder) -> None:
    """Zeros of the padding must not enter the convolution state (transformers #48256)."""
    state, alone = decoder.init_state(2, 16), decoder.init_state(1, 16)
    ids_BT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0]])
    mask_BT = torch.tensor([[True] * 5, [True, True, False, False, False]])
    decoder.prefill(ids_BT, state, mask_BT=mask_BT)
    decoder.prefill(ids_BT[1:, :2], alone)
    logits = decoder.step(torch.tensor([6, 6]), state)
    torch.testing.assert_close(logits[1:], decoder.step(torch.tensor([6]), alone))


def test_packed_sequences_do_not_leak(decoder: Decoder) -> None:
    """The convolution and attention stop at a sequence's start (transformers PR 46588)."""
    first, second = [3, 1, 4, 1, 5], [9, 2, 6]
    segments_BT = torch.tensor([[0] * 5 + [1] * 3])
    with torch.no_grad():
        packed = decoder(torch.tensor([first + second]), segments_BT=segments_BT)
        alone = decoder(torch.tensor([second]))
    torch.testing.assert_close(packed[:, 5:], alone)


def test_going_back_copies_no_cache(decoder: Decoder) -> None:
    """A mark leaves out what later tokens do not overwrite, and restores to the same logits."""
    state = decoder.init_state(1, 32)
    decoder.prefill(torch.tensor([[3, 1, 4, 1, 5]]), state)
    mark, snapshot = state.mark(), state.snapshot()
    assert mark.nbytes == sum(s.nbytes for s in state.mixers.values() if "conv" in s.tensors)
    decoder.prefill(torch.tensor([[9, 2, 6]]), state)
    state.restore(mark)
    assert state.num_tokens == 5
    logits = decoder.step(torch.tensor([7]), state)
    state.restore(snapshot)
    assert torch.equal(decoder.step(torch.tensor([7]), state), logits)


@pytest.mark.parametrize("mixer", registry.names("mixers"))
def test_going_back_is_exact_for_every_mixer(mixer: str) -> None:
    blocks = (BlockSpec(mixers=(MixerSpec(name=mixer),)),) * 2
    torch.manual_seed(0)
    decoder = Decoder(StackSpec(d_model=64, vocab_size=VOCAB, blocks=blocks)).double().eval()
    state = decoder.init_state(2, 16)
    ids_BT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    decoder.prefill(ids_BT, state)
    mark, snapshot = state.mark(), state.snapshot()
    decoder.prefill(ids_BT.flip(1), state)
    state.restore(mark)
    logits = decoder.step(torch.tensor([7, 8]), state)
    state.restore(snapshot)
    assert torch.equal(decoder.step(torch.tensor([7, 8]), state), logits)


def test_a_faster_model_over_the_same_state(decoder: Decoder) -> None:
    """Whatever has prefill, step and a state generates."""
    calls: list[int] = []

    class Counted:
        vocab_size, precision = VOCAB, "float64"
        init_state, prefill = decoder.init_state, decoder.prefill

        def step(self, ids_B: torch.Tensor, state: DecoderState) -> torch.Tensor:
            calls.append(1)
            return decoder.step(ids_B, state)

    transcript = Transcript(Counted(), 32)
    (reply,) = generate(transcript.model, [3, 1, 4], 6, transcript=transcript)
    assert len(calls) == 5
    assert reply.ids == plain(decoder, [3, 1, 4], 6)
    with pytest.raises(ValueError, match="Counted gives no logits of whole drafts"):
        verify(transcript, [1])


def test_fork_continues_one_prefix_in_two_ways(decoder: Decoder) -> None:
    transcript = Transcript(decoder, 64)
    transcript.extend([3, 1, 4, 1, 5])
    transcript.read()
    fork = transcript.fork()
    (one,) = generate(decoder, [9], 5, transcript=transcript)
    (two,) = generate(decoder, [2], 5, transcript=fork.fork())
    assert one.ids == plain(decoder, [3, 1, 4, 1, 5, 9], 5)
    assert two.ids == plain(decoder, [3, 1, 4, 1, 5, 2], 5)
    transcript.restore(fork)
    assert generate(decoder, [2], 5, transcript=transcript) == [two]


def test_replace_keeps_the_known_prefix(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    transcript = Transcript(decoder, 64)
    (reply,) = generate(decoder, [3, 1, 4], 4, transcript=transcript)
    whole = [3, 1, 4, *reply.ids, 9, 9]
    assert transcript.replace(whole) == 3 + 4 - 1
    counts = num_processed(decoder, monkeypatch)
    next(iter(Generation(transcript, 1)))
    assert counts == [3]
    assert transcript.replace([3, 2, 4]) == 0
    monkeypatch.undo()
    assert next(iter(Generation(transcript, 1))) == plain(decoder, [3, 2, 4], 1)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_verified_drafts_are_what_plain_decoding_gives(
    decoder: Decoder, sampling: Sampling
) -> None:
    rows = [[3, 1, 4, 1, 5], [9, 2]]
    wanted = [reply.ids for reply in generate(decoder, rows, 20, sampling)]
    transcript = Transcript(decoder, 64, batch_size=2)
    generate(decoder, rows, 1, sampling, transcript=transcript)
    lengths = [len(row) for row in rows]
    for right in (0, 3, 1, 4):
        done = [transcript.ids[i][lengths[i] :] for i in range(2)]
        # Row 0's draft is right up to a point, row 1's is right throughout and shorter.
        draft = wanted[0][len(done[0]) :][: right + 2]
        draft[right] = (draft[right] + 1) % VOCAB
        drafts = [draft, wanted[1][len(done[1]) :][:2]]
        new = verify(transcript, drafts, sampling)
        assert [len(tokens) for tokens in new] == [right + 1, 3]
    for i in range(2):
        assert wanted[i][: len(transcript.ids[i]) - lengths[i]] == transcript.ids[i][lengths[i] :]
    (more, _) = generate(decoder, [[], []], 3, sampling, transcript=transcript)
    start = len(transcript.ids[0]) - lengths[0] - 3
    assert more.ids == wanted[0][start : start + 3]


def test_a_refused_draft_leaves_the_transcript_as_it_was(decoder: Decoder) -> None:
    prompt = [3, 1, 4, 1, 5]
    wanted, damaged = plain(decoder, prompt, 6), copy.deepcopy(decoder)
    transcript = Transcript(damaged, 64)
    generate(damaged, prompt, 1, transcript=transcript)
    weight = damaged.norm.weight.detach()
    whole = weight.clone()
    weight[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        verify(transcript, wanted[1:3])
    weight.copy_(whole)
    assert transcript.state.lengths_B.tolist() == transcript.num_read == [len(prompt)]
    assert verify(transcript, wanted[1:3]) == [wanted[1:4]]


def test_same_seed_same_tokens_other_seed_others(decoder: Decoder) -> None:
    hot = Sampling(temperature=3.0, seed=1)
    one, again = (generate(decoder, [3, 1, 4], 24, hot)[0].ids for _ in range(2))
    other = generate(decoder, [3, 1, 4], 24, Sampling(temperature=3.0, seed=2))[0].ids
    assert one == again != other
    first, second = generate(decoder, [[3, 1, 4], [3, 1, 4]], 24, hot)
    assert first.ids == one
    assert second.ids == other


def test_stop_string_across_tokens(decoder: Decoder) -> None:
    """Each token is two letters; the stop string begins in the middle of one."""

    def decode(ids: list[int]) -> str:
        return "".join(chr(97 + i % 26) + chr(65 + i // 26) for i in ids)

    (free,) = generate(decoder, [3, 1, 4], 12, decode=decode)
    assert free.text == decode(free.ids)
    stop = free.text[7:10]
    at = free.text.index(stop)
    (reply,) = generate(decoder, [3, 1, 4], 12, decode=decode, stop_strings=[stop])
    assert reply.text == free.text[:at]
    assert reply.ended == "stop_string"
    assert len(reply.ids) == (at + len(stop) + 1) // 2


def test_streaming_gives_a_token_per_row_and_step(decoder: Decoder) -> None:
    transcript = Transcript(decoder, 32, batch_size=2)
    transcript.extend([[3, 1], [4]])
    steps = list(Generation(transcript, 3))
    assert [list(column) for column in zip(*steps, strict=True)] == [
        plain(decoder, [3, 1], 3),
        plain(decoder, [4], 3),
    ]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: generate(d, [], 3), "no prompt"),
        (lambda d: generate(d, [[1], []], 3), "row 1 has no unread token"),
        (lambda d: generate(d, "12", 3), "encode text first"),
        (lambda d: generate(d, [1.5], 3), "whole numbers"),
        (lambda d: generate(d, [1, VOCAB], 3), f"token {VOCAB} is not"),
        (lambda d: generate(d, [[1], [-1]], 3), "token -1 is not"),
        (lambda d: generate(d, [1], 3, chunk_size=0), "chunk_size=0"),
        (lambda d: Transcript(d, 0), "max_context=0"),
        (lambda d: Transcript(d, 8, batch_size=0), "batch_size=0"),
        (lambda d: verify(Transcript(d, 8), [1]), "row 0 has no unread token"),
        (lambda d: verify(Transcript(d, 8), [VOCAB]), f"token {VOCAB} is not"),
        (lambda d: generate(d, [1], 0), "max_new_tokens=0"),
        (lambda d: generate(d, [1], 3, stop_strings=["x"]), "decode="),
        (lambda d: generate(d, [1], 3, ends=lambda row, text: True), "decode="),
        (lambda d: generate(d, [1], 3, seeds=[1, 2]), "2 seeds for 1 rows"),
        (lambda d: generate(d, [1] * 9, 3, transcript=Transcript(d, 10)), "max_context"),
        (lambda d: generate(d, [1], 3, transcript=Transcript(d, 10, 2)), "1 prompts"),
    ],
)
def test_refusals_say_what_to_do(decoder: Decoder, call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(decoder)  # type: ignore[operator]


def test_a_refused_prompt_leaves_the_transcript_as_it_was(decoder: Decoder) -> None:
    transcript = Transcript(decoder, 10)
    with pytest.raises(ValueError, match="max_context"):
        generate(decoder, [1] * 9, 3, transcript=transcript)
    (reply,) = generate(decoder, [3, 1, 4], 3, transcript=transcript)
    assert reply.ids == plain(decoder, [3, 1, 4], 3)


def test_prompts_may_be_arrays(decoder: Decoder) -> None:
    expected = generate(decoder, [3, 1, 4], 3)
    for prompt in (torch.tensor([3, 1, 4]), np.array([[3, 1, 4]]), list(np.array([3, 1, 4]))):
        assert generate(decoder, prompt, 3) == expected  # type: ignore[arg-type]


def sixteen_bit(dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Decoder:
    """A decoder with logits as far apart as a trained one's."""
    torch.manual_seed(3)
    mixers = [MixerSpec(name="short_conv"), MixerSpec(name="gqa", config={"head_dim": 16})] * 2
    dense = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    blocks = tuple(BlockSpec(mixers=(mixer,), channel_mixer=dense) for mixer in mixers)
    built = Decoder(StackSpec(d_model=64, vocab_size=600, blocks=blocks))
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
                parameter.mul_(scale if "channel_mixer" in name else 1)
    return built.to(dtype).eval()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7)], ids=str)
def test_in_bfloat16_few_tokens_change_with_the_batch(sampling: Sampling) -> None:
    """Rounding is another one in a chunk and in a step; draws do not make more of it.

    Where a number is looked up in cumulated probabilities, 1 draw in 4 is another.
    """
    decoder = sixteen_bit()
    ids_BT = torch.randint(0, 600, (400, 9), generator=torch.Generator().manual_seed(0))
    seeds_B, positions_B = torch.arange(400), torch.full((400,), 9)
    chosen = []
    for split in (9, 8):
        state = decoder.init_state(400, 16)
        logits_BV = decoder.prefill(ids_BT[:, :split], state)
        if split == 8:
            logits_BV = decoder.step(ids_BT[:, 8], state)
        assert logits_BV.dtype == torch.float32
        chosen.append(choose(logits_BV, sampling, seeds_B, positions_B))
    assert int((chosen[0] != chosen[1]).sum()) <= 20
    state = decoder.init_state(4, 16)
    few_BV = decoder.prefill(ids_BT[:4], state)
    assert few_BV.dtype == torch.float32


def test_logits_of_16_bit_weights_are_not_rounded() -> None:
    decoder = sixteen_bit()
    ids_BT = torch.arange(9)[None]
    with torch.no_grad():
        hidden_BTD = decoder.hidden(ids_BT)
        wanted_BTV = hidden_BTD.double() @ decoder.embedding.weight.double().T
        torch.testing.assert_close(decoder(ids_BT).double(), wanted_BTV, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7)], ids=str)
def test_logits_that_overflow_end_the_generation(sampling: Sampling) -> None:
    """Finite weights whose products leave float16: no token can be chosen."""
    decoder = sixteen_bit(torch.float16, scale=300.0)
    assert all(torch.isfinite(parameter).all() for parameter in decoder.parameters())
    with pytest.raises(UserError, match=r"new token 1 are not finite.*float16.*bfloat16"):
        generate(decoder, [1, 50, 60], 6, sampling)
    wider = decoder.float()
    (reply,) = generate(wider, [1, 50, 60], 6, sampling)
    assert len(reply.ids) == 6
    transcript = Transcript(wider, 16)
    generate(wider, [1, 50, 60], 1, transcript=transcript)
    with torch.no_grad():
        wider.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="float32; the weights may be damaged"):
        verify(transcript, [5, 6])
    with pytest.raises(UserError, match="float32; the weights may be damaged"):
        generate(wider, [9], 3, transcript=transcript)


class Asked(TorchDispatchMode):
    """Counts how often the host asks a tensor for one number, which waits for a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7)], ids=str)
def test_a_token_is_all_that_is_asked_for(sampling: Sampling) -> None:
    transcript = Transcript(sixteen_bit(), 16)
    transcript.extend([[1, 2]])
    run = Generation(transcript, 6, sampling)
    next(run)
    with Asked() as asked:
        tokens = [next(run) for _ in range(3)]
    assert asked.count == 0
    assert all(token is not None for (token,) in tokens)


def turns(decoder: Decoder, ahead: bool, seed: int) -> list[object]:
    """Three turns on one transcript of several rows, of a random kind each, and what they leave."""
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(1, 4))
    transcript = Transcript(decoder, 96, batch)
    left: list[object] = []
    for _ in range(3):
        lengths = rng.integers(1, 5, batch)
        transcript.extend([rng.integers(0, VOCAB, n).tolist() for n in lengths])
        stops = rng.integers(0, VOCAB, 12).tolist()
        sampling = SAMPLED if rng.random() < 0.7 else Sampling()
        run = Generation(
            transcript, int(rng.integers(1, 13)), sampling, stop_ids=stops, ahead=ahead
        )
        cut = int(rng.integers(1, 16))
        for number, tokens in enumerate(run, 1):
            left.append(tokens)
            if number == cut:
                run.end(int(rng.integers(0, batch)))
            if number == 2 * cut:
                run.close()
        left.append((list(run.ended), list(transcript.num_read), transcript.state.num_tokens))
        left.append([list(row) for row in transcript.ids])
    left.append(verify(transcript, [[1, 2]] * batch))
    return left


@pytest.mark.parametrize("seed", range(24))
def test_steps_begun_ahead_change_nothing(decoder: Decoder, seed: int) -> None:
    assert turns(decoder, True, seed) == turns(decoder, False, seed)


def test_a_step_begins_before_its_token_is_known(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = num_processed(decoder, monkeypatch)
    transcript = Transcript(decoder, 16)
    transcript.extend([[1, 2]])
    begun = [len(counts) for _ in Generation(transcript, 4, ahead=True)]
    # The prompt alone, then one more with each token but the last, whose step nobody needs.
    assert begun == [1, 3, 4, 4]
