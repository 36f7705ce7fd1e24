import math

import numpy as np
import pytest
import torch

from archloop.errors import UserError
from archloop.evals.base import Score
from archloop.files import write_checked
from archloop.proxy import mixture, proxy, scoring
from archloop.proxy.config import ProxyConfig
from archloop.proxy.proxy import TEXT
from archloop.proxy.record import Rung, TrainJob
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.text import tokenizers

RECALL = {
    "settings": {"vocab_size": 8, "seq_len": 16, "train_on": "answers"},
    "batch_size": 8,
    "num_eval": 32,
}
MEMORY = {"settings": {"vocab_size": 12, "seq_len": 16}, "batch_size": 8, "num_eval": 32}
TASKS = {"in_context_recall": RECALL, "memorization": MEMORY}


def config(**settings):
    training = {"batch_size": 4, "seq_len": 32, "warmup_steps": 2, "base_width": None}
    defaults = {
        "corpus": {"source": "files", "paths": ("text.txt",), "heldout_share": 0.3},
        "vocab_size": 260,
        "num_text_windows": 8,
        "tasks": TASKS,
        "rungs": (10, 40),
        "training": training | settings.pop("training", {}),
    }
    return ProxyConfig(**{**defaults, **settings})


def spec(vocab_size, mixers=("short_conv",)):
    channel = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    blocks = tuple(
        BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=channel) for name in mixers
    )
    return StackSpec(d_model=32, vocab_size=vocab_size, blocks=blocks)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    lines = [f"entry {i} holds {i * i}\n" + "\n" * (i % 5 == 0) for i in range(6000)]
    (folder / "text.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(root):
    return mixture.prepare(config(), root / "cache", root)


def test_each_task_has_token_ids_of_its_own(data):
    assert {name: first for name, (_, first) in data.tasks.items()} == {
        "in_context_recall": 260,
        "memorization": 268,
    }
    assert data.vocab_size == mixture.vocab_size(config()) == 280
    text, recall, memory = mixture.batches_of_step(config(), data, 0, 0)
    assert text.ids_BT.max() < 260
    assert 260 <= recall.ids_BT.min() <= recall.ids_BT.max() < 268
    assert 268 <= memory.ids_BT.min() <= memory.ids_BT.max() < 280
    for batch, (low, high) in ((recall, (260, 268)), (memory, (268, 280))):
        asked = batch.targets_BT[batch.targets_BT != -100]
        assert low <= asked.min() <= asked.max() < high


def test_text_batches_are_the_corpus_and_predict_the_next_token(data):
    text = mixture.batches_of_step(config(), data, 0, 3)[0]
    assert text.ids_BT.shape == (4, 32)
    assert torch.equal(text.ids_BT[:, 1:], text.targets_BT[:, :-1])
    joined = data.train_T.tobytes()
    assert all(row.astype(np.int32).tobytes() in joined for row in text.ids_BT.numpy())


def test_batches_depend_on_seed_and_step_alone(data):
    def ids(seed, step):
        return torch.cat(
            [b.ids_BT.flatten() for b in mixture.batches_of_step(config(), data, seed, step)]
        )

    assert torch.equal(ids(1, 2), ids(1, 2))
    assert not torch.equal(ids(1, 2), ids(1, 3))
    assert not torch.equal(ids(1, 2), ids(2, 2))


def trained(vocab_size, data, settings, rung, seed, **more):
    steps = settings.rungs[rung]
    job = TrainJob(spec=spec(vocab_size), rung=rung, num_steps=steps, seed=seed, **more)
    return proxy.train_and_score(job, data, settings)


def test_trains_and_scores_and_repeats_exactly(data):
    results = [trained(280, data, config(), rung=0, seed=5) for _ in range(2)]
    first, again = (r.model_dump(exclude={"train_s", "eval_s"}) for r in results)
    assert first == again
    result = results[0]
    assert set(result.scores) == {TEXT, "in_context_recall", "memorization"}
    assert result.scores[TEXT].value < 8
    assert result.num_tokens == 10 * (4 * 32 + 8 * 15 + 8 * 16)
    assert len(result.losses) == 10
    assert not result.diverged


def test_seeds_differ(data):
    one = trained(280, data, config(), 0, seed=1)
    two = trained(280, data, config(), 0, seed=2)
    assert one.losses != two.losses


def test_memorization_is_learnt(data):
    settings = config(training={"learning_rate": 1e-2})
    result = trained(280, data, settings, rung=1, seed=0)
    assert result.scores["memorization"].signal > 3


def test_a_longer_rung_continues_the_shorter_one(data, tmp_path):
    wsd = config(training={"schedule": "wsd"})
    file = tmp_path / "rung0.safetensors"
    trained(280, data, wsd, 0, seed=3, checkpoint_to=file)
    resumed = trained(280, data, wsd, 1, seed=3, resume_from=file)
    whole = trained(280, data, wsd, 1, seed=3)
    assert resumed.losses[0][0] == resumed.continued_from == 8
    assert whole.continued_from == 0
    assert resumed.scores == whole.scores
    assert resumed.num_tokens == whole.num_tokens


def test_cosine_trains_each_rung_from_the_start(data, tmp_path):
    file = tmp_path / "rung0.safetensors"
    trained(280, data, config(), 0, seed=3, checkpoint_to=file)
    assert not file.exists()
    result = trained(280, data, config(), 1, seed=3, resume_from=file)
    assert result.losses[0][0] == 0


def test_divergence_is_flagged_and_not_scored(data):
    settings = config(training={"grad_clip": None})
    result = trained(280, data, settings, 0, 0, learning_rate=1e30)
    assert result.diverged
    assert result.scores == {}
    assert result.learning_rate == 1e30
    assert Rung.model_validate_json(result.model_dump_json()) == result


def test_an_overflow_in_evaluation_counts_as_divergence(data, monkeypatch):
    score = Score(
        value=math.nan, standard_error=1, chance=8, perfect=0, num_examples=2, category="text"
    )
    monkeypatch.setattr(scoring, "evaluate", lambda *args: {TEXT: score})
    result = trained(280, data, config(), 0, 0)
    assert result.diverged
    assert result.scores == {}


def test_evaluation_is_the_same_for_every_trial(data):
    torch.manual_seed(0)
    decoder = proxy.Decoder(spec(280)).eval()
    assert scoring.evaluate(decoder, data, config()) == scoring.evaluate(decoder, data, config())


def test_prepared_data_come_from_the_cache_and_damage_is_repaired(root, data, monkeypatch):
    for file in (root / "cache" / "tokens").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    repaired = mixture.prepare(config(), root / "cache", root)
    assert np.array_equal(repaired.train_T, data.train_T)
    monkeypatch.setattr("archloop.text.tokenizers.Tokenizer.encode_documents", None)
    cached = mixture.prepare(config(), root / "cache", root)
    assert np.array_equal(cached.heldout_T, data.heldout_T)


def test_tokens_of_another_tokenizer_are_not_taken(root, tmp_path):
    prepared = mixture.prepare(config(), tmp_path, root)
    [file] = (tmp_path / "tokenizers").iterdir()
    other = tokenizers.train(["zebra zebra zebras"] * 9, 260)
    write_checked(file, other.to_json().encode())
    again = mixture.prepare(config(), tmp_path, root)
    assert not np.array_equal(again.heldout_T, prepared.heldout_T)
    num_bytes = [data.num_bytes_V[data.heldout_T].sum() for data in (prepared, again)]
    assert num_bytes[0] == num_bytes[1]


def test_thinning_keeps_the_ends():
    losses = tuple((i, float(i)) for i in range(1000))
    kept = proxy.thinned(losses)
    assert len(kept) == proxy.KEPT_LOSSES
    assert (kept[0], kept[-1]) == (losses[0], losses[-1])
    assert proxy.thinned(losses[:7]) == losses[:7]


def test_wrong_vocabulary_says_what_is_needed(data):
    with pytest.raises(ValueError, match="280"):
        trained(281, data, config(), 0, 0)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"tasks": {"in_context_recal": {}}}, "did you mean 'in_context_recall'"),
        ({"tasks": {"memorization": {"settings": {"vocab": 9}}}}, "did you mean 'vocab_size'"),
        ({"tasks": {"memorization": {"settings": {"vocab_size": 1}}}}, "vocab_size=1"),
        ({"tasks": {"compression": {}}}, "head of its own"),
        ({"tasks": {"memorization": {"settings": {"map_seed": -1}}}}, "map_seed=-1"),
        (
            {"tasks": {"in_context_recall": {"settings": {"vocab_size": 4, "seq_len": 4}}}},
            "tasks.in_context_recall: .* too few different examples .*; make its vocabulary",
        ),
        ({"rungs": (10, 10)}, "rising"),
        ({"rungs": ()}, "rungs"),
        ({"vocab_size": 100}, "vocab_size"),
    ],
)
def test_config_is_checked(settings, expected):
    with pytest.raises(ValueError, match=expected):
        mixture.vocab_size(config(**settings))


def test_too_little_text_for_a_sequence(root):
    with pytest.raises(ValueError, match="seq_len=100000"):
        mixture.prepare(config(training={"seq_len": 100_000}), root / "cache", root)


SKILLS = {
    "multi_query_recall": {
        "settings": {"num_keys": 8, "num_values": 4, "num_pairs": 4, "seq_len": 16},
        "num_eval": 8,
    },
    "state_tracking": {"settings": {"group": "parity", "seq_len": 8}, "num_eval": 8},
}


class TestLengthsAndParts:
    def test_everything_is_scored_at_every_length(self, root):
        chosen = config(tasks=SKILLS, lengths=(1, 4), text_parts=True)
        data = mixture.prepare(chosen, root / "cache", root)
        decoder = proxy.Decoder(spec(data.vocab_size)).eval()
        scores = scoring.evaluate(decoder, data, chosen)
        names = {
            *("bits_per_byte", "bits_per_byte_repeated", "bits_per_byte_other"),
            *("multi_query_recall", "state_tracking"),
        }
        assert set(scores) == names | {f"{name}@4x" for name in names}
        assert scores["bits_per_byte@4x"].num_examples < scores["bits_per_byte"].num_examples

    def test_only_the_trained_length_by_default(self, root):
        chosen = config(tasks=SKILLS)
        data = mixture.prepare(chosen, root / "cache", root)
        decoder = proxy.Decoder(spec(data.vocab_size)).eval()
        assert set(scoring.evaluate(decoder, data, chosen)) == {"bits_per_byte", *SKILLS}

    def test_rows_in_which_a_window_is_hardly_left_are_named(self):
        chosen = config(tasks=SKILLS, lengths=(1, 4))
        short = scoring.too_short(chosen, {"multi_query_recall": 16, "state_tracking": 8}, 8)
        assert set(short) == {"multi_query_recall", "state_tracking"}
        assert "shorter than 4 x the 8 tokens" in short["multi_query_recall"]

    def test_the_trained_length_must_be_there(self):
        with pytest.raises(ValueError, match="must contain 1"):
            config(lengths=(4,))

    def test_examples_of_the_longest_rows_must_fit_into_memory(self):
        tasks = {"in_context_recall": {**RECALL, "num_eval": 2**20}}
        mixture.vocab_size(config(tasks=tasks))
        with pytest.raises(UserError, match="of 64 tokens fill the memory; allowed: 1 to 524288"):
            mixture.vocab_size(config(tasks=tasks, lengths=(1, 4)))
