import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

from archloop.cli import app
from archloop.evals import runner, suites
from archloop.evals.codecs import ByteCodec, TokenizerCodec
from archloop.evals.decoder_model import DecoderModel
from archloop.evals.summary import influence
from archloop.evals.tasks.bits_per_byte import BitsPerByte
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

SPEC = StackSpec(
    d_model=64,
    vocab_size=320,
    blocks=tuple(
        BlockSpec(
            mixers=(MixerSpec(name=name),),
            channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": 2.0}),
        )
        for name in ("short_conv", "gqa")
    ),
)
NAMES = ["agreement_en", "addition"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DecoderModel(Decoder(SPEC).eval(), ByteCodec(), start=(256,))


def run(model, folder, **settings):
    asked = {"identity": "a", "limit": 8, **settings}
    identity = asked.pop("identity")
    told = []
    results = runner.run(
        model,
        identity,
        suites.load("quick", NAMES),
        folder,
        on_result=lambda result, known: told.append((result.name, known)),
        **asked,
    )
    return results, told


def test_what_is_finished_is_not_run_again(model, tmp_path):
    first, told = run(model, tmp_path)
    assert told == [("agreement_en", False), ("addition", False)]
    (tmp_path / "addition.json").unlink()
    again, told = run(model, tmp_path)
    assert told == [("agreement_en", True), ("addition", False)]
    assert {name: r.score for name, r in first.items()} == {n: r.score for n, r in again.items()}


@pytest.mark.parametrize("change", [{"identity": "b"}, {"limit": 9}, {"seed": 1}])
def test_another_model_or_other_examples_are_run(model, tmp_path, change):
    run(model, tmp_path)
    _, told = run(model, tmp_path, **change)
    assert not any(known for _, known in told)


def test_another_text_is_asked(model, tmp_path):
    settings = {
        "corpus": {"source": "files", "paths": [str(tmp_path / "text")], "heldout_share": 0.4},
        "num_chars": 64,
    }
    (tmp_path / "text").mkdir()
    told = []
    for words in ("the first text", "the first text", "another one, as long"):
        for number in range(40):
            (tmp_path / "text" / f"{number}.txt").write_text(f"{words} {number} " * 20)
        runner.run(
            model,
            "a",
            {"text": BitsPerByte(BitsPerByte.Config.model_validate(settings))},
            tmp_path / "out",
            limit=2,
            on_result=lambda _, known: told.append(known),
        )
    assert told == [False, True, False]


def test_a_damaged_file_is_run_again(model, tmp_path):
    run(model, tmp_path)
    (tmp_path / "agreement_en.json").write_text("{")
    assert run(model, tmp_path)[1][0] == ("agreement_en", False)


def test_results_hold_the_grade_of_each_example(model, tmp_path):
    results, _ = run(model, tmp_path)
    kept = json.loads((tmp_path / "agreement_en.json").read_text())
    assert len(kept["grades"]) == 8
    assert np.mean(kept["grades"]) == pytest.approx(results["agreement_en"].score.value)


def test_quarters_of_the_same_texts_share_their_error(model, tmp_path):
    names = ["text_position_1", "text_position_2", "addition"]
    results = runner.run(model, "a", suites.load("full", names), tmp_path, limit=4)
    first, second = (results[name] for name in names[:2])
    assert first.examples == second.examples != ""
    assert not results["addition"].examples
    pair = runner.summarise({name: results[name] for name in names[:2]})
    moved = [influence(each.score, each.graded) for each in (first, second)]
    covariance = float((moved[0] * moved[1]).sum())
    apart = (first.score.standard_error**2 + second.score.standard_error**2) / 8**2
    assert pair.standard_error == pytest.approx(math.sqrt(apart + 2 * covariance) / 2)


def test_every_suite_can_be_made_and_described():
    for suite in suites.SUITES:
        for name, evaluation in suites.load(suite).items():
            entry = runner.describe(name, evaluation)
            assert json.loads(json.dumps(entry)) == entry


@pytest.mark.parametrize(
    "suite, only, expected",
    [
        ("quik", [], "did you mean 'quick'"),
        ("quick", ["agreement_em"], "did you mean 'agreement_en'"),
    ],
)
def test_unknown_names_are_said(suite, only, expected):
    with pytest.raises(ValueError, match=expected):
        suites.load(suite, only)


class TestCommand:
    def invoke(self, *arguments):
        return CliRunner().invoke(app, ["eval", *map(str, arguments)])

    @pytest.fixture
    def spec(self, tmp_path):
        file = tmp_path / "spec.json"
        file.write_text(SPEC.to_json())
        return file

    def test_random_weights(self, spec, tmp_path):
        common = (spec, "--tasks", ",".join(NAMES), "--limit", 6, "--output", tmp_path / "out")
        done = self.invoke(*common, "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert set(found["scores"]) == set(NAMES)
        assert found["identity"].startswith("random:")
        assert "(known)" in self.invoke(*common).stderr

    def test_the_quick_suite_asks_few_examples_of_each(self, spec, tmp_path):
        common = (spec, "--tasks", "addition", "--json", "--output", tmp_path / "out")
        few = json.loads(self.invoke(*common).stdout)["scores"]["addition"]
        assert few["num_examples"] == suites.LIMITS["quick"]
        more = json.loads(self.invoke(*common, "--limit", 9).stdout)["scores"]["addition"]
        assert more["num_examples"] == 9

    def test_packed_questions(self, spec, tmp_path):
        file, names = tmp_path / "packed.jsonl", ",".join(NAMES)
        done = self.invoke("--pack", file, "--tasks", names, "--limit", 6)
        assert done.exit_code == 0, done.output
        assert "2 evaluations" in done.stderr.replace("\n", "")
        common = (spec, "--limit", 6, "--json")
        direct = self.invoke(*common, "--tasks", names, "--output", tmp_path / "direct")
        packed = self.invoke(*common, "--packed", file, "--output", tmp_path / "packed")
        scores = [json.loads(each.stdout)["scores"] for each in (direct, packed)]
        for each in (*scores[0].values(), *scores[1].values()):
            del each["seconds"]
        assert scores[0] == scores[1]
        # As many as the file has, unless it is said; another number is refused.
        unsaid = self.invoke(spec, "--json", "--packed", file, "--output", tmp_path / "packed")
        assert unsaid.exit_code == 0, unsaid.stderr
        assert "(known)" in unsaid.stderr
        other = self.invoke(spec, "--limit", 7, "--packed", file)
        assert (other.exit_code, "seed 0 and limit 6" in other.stderr) == (2, True)
        refused = self.invoke(*common, "--packed", file, "--tasks", "agreement_em")
        assert refused.exit_code == 2
        assert "did you mean 'agreement_en'" in refused.stderr

    def test_checkpoint(self, tmp_path):
        from archloop.checkpoints.saving import save

        torch.manual_seed(1)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {letter: index for index, letter in enumerate([*alphabet, "<s>"])}
        tokenizer = Tokenizer(models.BPE(vocab, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        codec = TokenizerCodec(tokenizer)
        assert codec.decode(codec.encode("naïve 日本")) == "naïve 日本"
        decoder = Decoder(SPEC).eval()
        save(decoder, tmp_path / "model")
        (tmp_path / "model" / "tokenizer.json").write_text(tokenizer.to_str())
        done = self.invoke(
            *(tmp_path / "model", "--tasks", "addition", "--limit", 4),
            *("--output", tmp_path / "out", "--json"),
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["identity"].startswith("weights:")

    def test_a_corrected_tokenizer_or_stop_is_another_model(self, tmp_path):
        from archloop.checkpoints.saving import save

        torch.manual_seed(1)
        save(Decoder(SPEC).eval(), tmp_path / "model")
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        asked = (tmp_path / "model", "--tasks", "addition", "--limit", 2)
        for order in (letters, letters[::-1]):
            tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(order)}, []))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            (tmp_path / "model" / "tokenizer.json").write_text(tokenizer.to_str())
            assert "(known)" not in self.invoke(*asked, "--output", tmp_path / "out").stderr
            assert "(known)" in self.invoke(*asked, "--output", tmp_path / "out").stderr
        (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 7}')
        assert "(known)" not in self.invoke(*asked, "--output", tmp_path / "out").stderr

    def test_a_file_that_is_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        done = self.invoke("--pack", ".", "--tasks", "addition", "--limit", 2)
        assert (done.exit_code, done.stderr) == (1, "archloop: .: Is a directory\n")

    def test_weights_that_are_no_numbers(self, tmp_path):
        from archloop.checkpoints.saving import save

        torch.manual_seed(1)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        decoder = Decoder(SPEC).eval()
        decoder.norm.weight.data[0] = math.nan
        save(decoder, tmp_path / "model")
        (tmp_path / "model" / "tokenizer.json").write_text(tokenizer.to_str())
        for task in ("agreement_en", "addition"):
            done = self.invoke(
                *(tmp_path / "model", "--tasks", task, "--limit", 2),
                *("--output", tmp_path / "out", "--json"),
            )
            assert done.exit_code == 2, done.output
            assert "not finite numbers" in done.stderr
            assert not list((tmp_path / "out").rglob(f"{task}.json"))

    def test_listing(self):
        done = self.invoke("--list", "--json")
        assert done.exit_code == 0
        rows = json.loads(done.stdout)
        assert {"name", "category", "chance", "perfect", "licence", "verb"} <= set(rows[0])

    @pytest.mark.parametrize(
        "arguments, expected",
        [([], "name a model"), (["lfm2-350m", "--quick"], "--quick belongs to --suite mad")],
    )
    def test_what_cannot_be_asked(self, arguments, expected):
        done = self.invoke(*arguments)
        assert done.exit_code == 2
        assert expected in done.stderr
