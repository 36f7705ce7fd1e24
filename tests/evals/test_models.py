"""One evaluation on a decoder, on its checkpoint and on its artifact, by each verb."""

import copy

import numpy as np
import pytest
import torch

from archloop import registry
from archloop.checkpoints.loading import load
from archloop.checkpoints.saving import save
from archloop.errors import UserError
from archloop.evals import decoder_model
from archloop.evals.artifact_model import ArtifactModel
from archloop.evals.decoder_model import DecoderModel
from archloop.evals.tasks.addition import Addition
from archloop.evals.tasks.agreement import Agreement
from archloop.evals.tasks.bits_per_byte import BitsPerByte
from archloop.evals.tasks.in_context_recall import InContextRecall
from archloop.evals.text_tasks import continuation
from archloop.evals.verbs import Continuation, Prompt
from archloop.runtimes.exporting import export
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.text.corpora import CorpusConfig

SPEC = StackSpec(
    d_model=64,
    vocab_size=256,
    blocks=tuple(
        BlockSpec(
            mixers=(MixerSpec(name=name),),
            channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": 2.0}),
        )
        for name in ("short_conv", "gqa", "mamba2")
    ),
)


class Bytes:
    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return Decoder(SPEC).eval()


@pytest.fixture(scope="module")
def session(decoder, tmp_path_factory):
    runtime = registry.get("runtimes", "torch_eager")()
    folder = tmp_path_factory.mktemp("artifact")
    export(runtime, decoder, folder, "fp32", parity=False)
    session = runtime.open(folder, threads=1, max_context=300)
    yield session
    session.close()


def rows(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=length).tolist() for length in lengths]


class TestDecoderModel:
    def test_rolling_equals_a_row_at_a_time(self, decoder):
        given = rows(7, 40, 2, 19, 40)
        found = DecoderModel(decoder, batch_size=3).loglikelihood_rolling(given)
        for row, logs in zip(given, found, strict=True):
            with torch.inference_mode():
                logits = decoder(torch.tensor([row[:-1]]))[0].log_softmax(-1)
            expected = logits[torch.arange(len(row) - 1), row[1:]]
            np.testing.assert_allclose(logs, expected, atol=1e-4)

    @pytest.mark.parametrize("evaluation", [Agreement(), Addition(), InContextRecall()])
    def test_a_score_is_the_same_at_any_batch_size(self, decoder, evaluation):
        one, many = (
            evaluation.run(DecoderModel(decoder, Bytes(), start=(0,), batch_size=size), limit=40)
            for size in (1, 32)
        )
        assert one == many

    @pytest.mark.parametrize("evaluation", [Agreement(), Addition(), InContextRecall()])
    def test_in_bf16_it_is_the_same_within_its_error(self, decoder, evaluation):
        """Sums are ordered by the shapes of a batch, so that near ties fall either way."""
        rounded = copy.deepcopy(decoder).bfloat16()
        one, many = (
            evaluation.run(DecoderModel(rounded, Bytes(), start=(0,), batch_size=size), limit=40)
            for size in (1, 32)
        )
        error = max(one.standard_error, many.standard_error)
        assert abs(one.value - many.value) <= error

    def test_likelihood_is_the_sum_behind_the_prefix(self, decoder):
        (row,) = rows(12)
        model = DecoderModel(decoder)
        (rolling,) = model.loglikelihood_rolling([row])
        (answer,) = model.loglikelihood([Continuation(row[:8], row[8:])])
        assert answer.nats == pytest.approx(rolling[7:].sum())
        with torch.inference_mode():
            best = int(decoder(torch.tensor([row[:8]]))[0, -1].argmax())
        greedy, other = model.loglikelihood(
            [Continuation(row[:8], [best]), Continuation(row[:8], [(best + 1) % 256])]
        )
        assert greedy.is_greedy
        assert not other.is_greedy

    @pytest.mark.parametrize("name", registry.shipped("mixers"))
    def test_behind_a_prefix_tokens_cost_what_they_cost_in_the_row(self, name):
        torch.manual_seed(0)
        blocks = tuple(BlockSpec(mixers=(MixerSpec(name=each),)) for each in (name, "gqa"))
        model = DecoderModel(Decoder(StackSpec(d_model=64, vocab_size=256, blocks=blocks)).eval())
        given = [(row, cut) for row in rows(9, 43) for cut in (1, 6, 8)]
        answers = model.loglikelihood([Continuation(row[:cut], row[cut:]) for row, cut in given])
        whole = model.loglikelihood_rolling([row for row, _ in given])
        for (_, cut), answer, logs in zip(given, answers, whole, strict=True):
            assert answer.nats == pytest.approx(logs[cut - 1 :].sum(), abs=1e-3)

    def test_choices_behind_one_prefix_read_it_once(self, decoder, monkeypatch):
        prefixes = rows(30, 11)
        requests = [
            Continuation(prefix, [7 * (number + 1)] * (number + 1))
            for number in range(3)
            for prefix in prefixes
        ]
        alone = [DecoderModel(decoder).loglikelihood([request])[0] for request in requests]
        read = []
        prefill = decoder.prefill

        def counted(ids_BT, state, **settings):
            read.append(tuple(ids_BT.shape))
            return prefill(ids_BT, state, **settings)

        monkeypatch.setattr(decoder, "prefill", counted)
        for size, shapes in ((32, [(2, 30)]), (1, [(1, 30), (1, 11)])):
            read.clear()
            told = []
            model = DecoderModel(decoder, batch_size=size, on_rows=told.append)
            for one, other in zip(alone, model.loglikelihood(requests), strict=True):
                assert one.nats == pytest.approx(other.nats, abs=1e-4)
                assert one.is_greedy == other.is_greedy
            assert read == shapes
            assert sum(told) == len(requests)

    def test_a_reply_ends_where_it_is_lost(self, decoder, session):
        (row,) = rows(9)
        asked = Prompt(row, (), 20)
        (whole,) = DecoderModel(decoder, Bytes()).generate_until([asked])
        begun = []

        def lost(text):
            begun.append(text)
            return len(text) > 3

        for model in (DecoderModel(decoder, Bytes()), ArtifactModel(session, 256, Bytes())):
            begun.clear()
            (cut,) = model.generate_until([asked._replace(lost=lost)])
            assert whole.startswith(cut.rstrip("\N{REPLACEMENT CHARACTER}"))
            assert len(begun) < 20
            assert max(map(len, begun)) > 3

    def test_replies_come_in_the_order_of_their_prompts(self, decoder):
        given = [Prompt(row, ("\0",), 5 + i % 2) for i, row in enumerate(rows(3, 30, 9, 30))]
        model = DecoderModel(decoder, Bytes(), batch_size=2)
        assert model.generate_until(given) == [model.generate_until([p])[0] for p in given]

    def test_long_prompts_are_read_few_at_a_time(self, decoder, monkeypatch):
        """Attention over padded rows may keep a number for each pair of tokens."""
        given = [Prompt(row, (), 2) for row in rows(40, 10, 10, 40, 10, 40)]
        expected = DecoderModel(decoder, Bytes()).generate_until(given)
        monkeypatch.setattr(decoder_model, "MAX_SCORES", 2 * 40**2)
        told = []
        model = DecoderModel(decoder, Bytes(), on_rows=told.append)
        assert model.generate_until(given) == expected
        assert told == [2, 2, 2]
        monkeypatch.setattr(decoder_model, "MAX_SCORES", 1)
        assert model.generate_until(given) == expected

    def test_without_a_tokenizer_text_is_refused_by_name(self, decoder):
        with pytest.raises(ValueError, match="no tokenizer"):
            DecoderModel(decoder).generate_until([Prompt([1], (), 2)])
        with pytest.raises(ValueError, match="no tokenizer"):
            Agreement().run(DecoderModel(decoder))

    def test_nothing_to_predict_is_refused(self, decoder):
        with pytest.raises(ValueError, match="at least one token"):
            DecoderModel(decoder).loglikelihood([Continuation([], [1])])


class TestArtifact:
    """An engine that gives the last logits of a prefill alone, by teacher-forced steps."""

    @pytest.mark.parametrize("evaluation", [Agreement(), Addition()])
    def test_scores_equal_the_decoders(self, decoder, session, evaluation):
        here = evaluation.run(DecoderModel(decoder, Bytes(), start=(0,)), limit=6)
        there = evaluation.run(ArtifactModel(session, 256, Bytes(), start=(0,)), limit=6)
        assert here == there

    def test_answers_equal_the_decoders(self, decoder, session):
        given = rows(5, 20)
        here, there = DecoderModel(decoder, Bytes()), ArtifactModel(session, 256, Bytes())
        for one, other in zip(
            here.loglikelihood_rolling(given), there.loglikelihood_rolling(given), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-4)
        requests = [Continuation(row[:3], row[3:]) for row in given]
        for one, other in zip(
            here.loglikelihood(requests), there.loglikelihood(requests), strict=True
        ):
            assert one.nats == pytest.approx(other.nats, abs=1e-3)
            assert one.is_greedy == other.is_greedy
        ids_NT = np.array(rows(9, 9))
        asked_NT = np.zeros((2, 9), dtype=bool)
        asked_NT[0, [2, 8]] = asked_NT[1, 5] = True
        np.testing.assert_array_equal(
            here.predict(ids_NT, asked_NT)[asked_NT], there.predict(ids_NT, asked_NT)[asked_NT]
        )
        prompts = [Prompt(row, ("\0",), 4) for row in given]
        assert here.generate_until(prompts) == there.generate_until(prompts)

    def test_steps_have_a_limit_and_room_is_checked(self, session):
        (row,) = rows(50)
        with pytest.raises(ValueError, match="more than 10"):
            ArtifactModel(session, 256, max_steps=10).loglikelihood_rolling([row])
        with pytest.raises(ValueError, match="room for 300"):
            ArtifactModel(session, 256).loglikelihood_rolling(rows(400))

    def test_the_last_new_token_needs_no_room(self, decoder, session):
        (row,) = rows(297)
        asked = [Prompt(row, (), 4)]
        there = ArtifactModel(session, 256, Bytes())
        assert there.generate_until(asked) == DecoderModel(decoder, Bytes()).generate_until(asked)
        with pytest.raises(ValueError, match=r"301 tokens.*room for 300"):
            there.generate_until([Prompt(row, (), 5)])


@pytest.fixture
def text(tmp_path):
    """Bits per byte of documents of our own, half of them held out."""
    file = tmp_path / "text.jsonl"
    file.write_text("".join(f'{{"text": "Line {i} of {i} lines in all."}}\n' for i in range(60)))
    corpus = CorpusConfig(source="files", paths=(str(file),), heldout_share=0.5)
    return BitsPerByte(BitsPerByte.Config(corpus=corpus, num_chars=40))


@pytest.mark.parametrize(
    ("verb", "evaluation"),
    [
        ("predict", InContextRecall()),
        ("loglikelihood", Agreement()),
        ("loglikelihood_rolling", None),
        ("generate_until", Addition()),
    ],
)
def test_a_decoder_its_checkpoint_and_its_artifact_score_alike(
    verb, evaluation, text, decoder, session, tmp_path
):
    evaluation = evaluation or text
    assert evaluation.verb == verb
    save(decoder, tmp_path / "checkpoint", "archloop")
    checkpoint = load(tmp_path / "checkpoint")
    given = {"codec": Bytes(), "start": (0,)}
    here, loaded, exported = (
        evaluation.run(model, limit=6)
        for model in (
            DecoderModel(decoder, **given),
            DecoderModel(checkpoint, **given),
            ArtifactModel(session, 256, **given),
        )
    )
    assert here == loaded
    assert exported == here.model_copy(
        update={
            "value": pytest.approx(here.value, rel=1e-5),
            "standard_error": pytest.approx(here.standard_error, rel=1e-4),
        }
    )


class TestLongestContext:
    """What the model is not made for is refused by every verb."""

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return DecoderModel(Decoder(SPEC.model_copy(update={"max_context": 20})).eval(), Bytes())

    def test_as_long_as_it_may_be(self, model):
        (row,) = rows(21)
        assert len(model.loglikelihood_rolling([row])[0]) == 20
        assert model.loglikelihood([Continuation(row[:3], row[3:])])[0].nats < 0
        assert model.generate_until([Prompt(row[:15], ["none"], 6)])
        assert model.predict(np.array([row[:20]]), np.ones((1, 20), bool)).shape == (1, 20)

    def test_longer(self, model):
        (row,) = rows(22)
        asked = np.ones((1, 22), bool)
        for ask in (
            lambda: model.loglikelihood_rolling([row]),
            lambda: model.loglikelihood([Continuation(row[:3], row[3:])]),
            lambda: model.generate_until([Prompt(row[:16], ["none"], 6)]),
            lambda: model.predict(np.array([row]), asked),
        ):
            with pytest.raises(UserError, match=r"2[12] tokens and the model is made for 20"):
                ask()


class TestCutting:
    class Words:
        """Cuts into words that take the space before them, as most tokenizers do."""

        def encode(self, text):
            import re

            return [hash(word) for word in re.findall(r" ?\w+|\W", text)]

    def test_tokens_are_those_of_the_whole_text(self):
        codec = self.Words()
        found = continuation(codec, (9,), "one two", " three four")
        assert found.prefix == [9, hash("one"), hash(" two")]
        assert found.continuation == [hash(" three"), hash(" four")]

    def test_a_context_that_swallows_the_continuation_is_cut_apart(self):
        codec = self.Words()
        found = continuation(codec, (), "wor", "d")
        assert found.prefix == [hash("wor")]
        assert found.continuation == [hash("d")]

    @pytest.mark.parametrize("following", ["d!", "d and more"])
    def test_what_is_scored_is_all_that_follows(self, following):
        """A token that spans the join, and more tokens behind it: none of them is given away."""
        codec = self.Words()
        found = continuation(codec, (9,), "hello wor", following)
        assert found.prefix == [9, *codec.encode("hello wor")]
        assert found.continuation == codec.encode(following)

    def test_nothing_before_or_after_is_refused(self):
        for context, following in (("", "x"), ("x", "")):
            with pytest.raises(ValueError, match="nothing to predict"):
                continuation(self.Words(), (), context, following)
