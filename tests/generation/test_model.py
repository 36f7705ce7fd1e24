"""A checkpoint with tokenizer and chat template: defaults, streaming, turns, the hub."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from archloop import checkpoints, generation
from archloop.checkpoints import files, hub
from archloop.errors import UserError
from archloop.generation.generation import Generation, generate
from archloop.generation.sampling import Sampling
from archloop.generation.transcript import Transcript
from archloop.text.chat import ChatTemplate
from archloop.text.special_tokens import SpecialTokens
from checkpoints import folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    decoder = folders.decoder(folders.spec(vocab_size=261)).double()
    checkpoints.save(decoder, path, tokens=SpecialTokens(eos=(3,)))
    folders.tokenizer().save(str(path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<|startoftext|>"}, "chat_template": folders.TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> generation.Model:
    return generation.load_model(folder)


def test_text_and_chat_become_ids(model: generation.Model) -> None:
    assert model.decode(model.encode("aé")) == "aé"
    assert model.encode("a")[0] == 1
    ids = model.encode_chat([{"role": "user", "content": "é"}])
    assert ids[:2] == [1, 2]
    assert ids.count(1) == 1
    text = model.tokenizer.decode(ids, skip_special_tokens=False) if model.tokenizer else ""
    assert text == "<|startoftext|><|im_start|>user\né<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_that_writes_the_beginning_out_is_told_of_it(
    model: generation.Model, caplog: pytest.LogCaptureFixture
) -> None:
    begins_once = replace(model, decoder=model.decoder)
    begins_once.decoder.special_tokens = SpecialTokens(bos=1, eos=(3,))
    list(generation.stream(begins_once, "a", max_new_tokens=1))
    assert not caplog.records
    list(generation.stream(begins_once, "<|startoftext|>a", max_new_tokens=1))
    assert "begins with token 1 twice" in caplog.text


def test_streamed_pieces_are_the_reply(model: generation.Model) -> None:
    pieces = list(generation.stream(model, "Hello", max_new_tokens=40))
    (reply,) = generate(
        model.decoder, model.encode("Hello"), 40, stop_ids=model.stop_ids, decode=model.decode
    )
    assert "".join(pieces) == reply.text
    assert all(pieces)


def test_streaming_ends_at_stop_string_and_stop_id(model: generation.Model) -> None:
    whole = "".join(generation.stream(model, "Hello", max_new_tokens=40))
    stop = whole[4:6]
    cut = "".join(generation.stream(model, "Hello", max_new_tokens=40, stop_strings=[stop]))
    assert cut == whole[: whole.index(stop)]
    (reply,) = generate(model.decoder, model.encode("Hello"), 40)
    ended = generation.Model(model.decoder, model.tokenizer, stop_ids=(reply.ids[5],))
    first = reply.ids.index(reply.ids[5])
    text = "".join(generation.stream(ended, "Hello", max_new_tokens=40))
    assert reply.text is None
    assert model.decode(reply.ids[:first]).startswith(text)


def test_a_chat_reads_only_its_new_turn(
    model: generation.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole conversation is rendered each time, and only what is new is computed."""
    user = {"role": "user", "content": "Hi"}
    transcript = Transcript(model.decoder, 256)
    reply = model.encode("o")[1:] + model.encode("k")[1:]
    assert model.encode("ok")[1:] != reply
    transcript.replace(model.encode_chat([user]) + reply)
    transcript.read()
    known = transcript.num_read[0]
    messages = [user, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "And?"}]
    ids = model.encode_chat(messages, after=transcript.ids[0])
    fresh = "".join(generation.stream(model, ids, max_new_tokens=6))
    counts: list[int] = []
    embed = model.decoder.embed
    monkeypatch.setattr(
        model.decoder, "embed", lambda ids: (counts.append(ids.numel()), embed(ids))[1]
    )
    warm = "".join(generation.stream(model, messages, max_new_tokens=6, transcript=transcript))
    assert counts[0] == len(ids) - known
    assert warm == fresh
    assert model.decode(ids) == model.decode(model.encode_chat(messages))


def test_a_second_text_continues_the_first(model: generation.Model) -> None:
    """The token that opens a text comes once, and a refused text leaves no trace."""
    transcript = Transcript(model.decoder, 24)
    list(generation.stream(model, "Hi", max_new_tokens=3, transcript=transcript))
    before = [list(row) for row in transcript.ids]
    with pytest.raises(ValueError, match="larger max_context"):
        next(generation.stream(model, "x" * 30, max_new_tokens=3, transcript=transcript))
    assert transcript.ids == before
    list(generation.stream(model, "And?", max_new_tokens=3, transcript=transcript))
    assert transcript.ids[0][len(before[0]) :][:4] == model.encode("And?")[1:]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_reply_that_nobody_reads_on_is_whole(
    model: generation.Model, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    begin = partial(Generation, ahead=ahead)
    monkeypatch.setattr("archloop.generation.model.Generation", begin)
    transcript = Transcript(model.decoder, 80)
    pieces = generation.stream(model, "Hello", max_new_tokens=40, transcript=transcript)
    for _ in range(3):
        next(pieces)
    del pieces
    assert transcript.num_read == [len(transcript.ids[0]) - 1]
    assert transcript.state.lengths_B.tolist() == transcript.num_read
    (on,) = generate(model.decoder, [[]], 8, transcript=transcript)
    (known,) = generate(model.decoder, transcript.ids[0][:-8], 8)
    assert on.ids == known.ids


def test_a_reply_ends_with_the_longest_context(model: generation.Model) -> None:
    spec = folders.spec(vocab_size=261, max_context=9)
    short = replace(model, decoder=folders.decoder(spec), stop_ids=())
    transcripts = [generation.stream(short, [1, 70, 71], max_new_tokens=n) for n in (7, 1 << 40)]
    one, other = ("".join(pieces) for pieces in transcripts)
    assert one == other
    with pytest.raises(UserError, match="prompt has 10 tokens and the model is made for 9"):
        next(generation.stream(short, [70] * 10))


def test_a_tokenizer_neither_cuts_nor_fills_up(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    trained = folders.tokenizer()
    trained.enable_truncation(4)
    trained.enable_padding(length=6)
    trained.save(str(tmp_path / "model" / "tokenizer.json"))
    model = generation.load_model(tmp_path / "model")
    assert model.decode(model.encode("Hello world")) == "Hello world"
    assert len(model.encode("a")) == 2


def test_a_changed_conversation_is_read_anew(model: generation.Model) -> None:
    transcript = Transcript(model.decoder, 256)
    first = [{"role": "user", "content": "Hi"}]
    list(generation.stream(model, first, max_new_tokens=4, transcript=transcript))
    other = [{"role": "user", "content": "Bye"}]
    again = "".join(generation.stream(model, other, max_new_tokens=4, transcript=transcript))
    assert again == "".join(generation.stream(model, other, max_new_tokens=4))


def test_special_tokens_and_tools_on_request(model: generation.Model) -> None:
    assert model.decode([1, 2, 3]) == ""
    assert model.decode([1, 2], special_tokens=True) == "<|startoftext|><|im_start|>"
    template = ChatTemplate("{{ tools | tojson }}")
    listing = replace(model, chat_template=template)
    ids = listing.encode_chat([], tools=[{"name": "é"}])
    assert model.decode(ids) == '[{"name": "é"}]'


def test_defaults_come_from_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert generation.load_model(folder).sampling == Sampling()
    assert generation.load_model(folder).stop_ids == (3,)
    settings = {"temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05}
    path = folder / "generation_config.json"
    try:
        path.write_text(json.dumps({"do_sample": True, "eos_token_id": [3, 0], **settings}))
        model = generation.load_model(folder)
        assert model.sampling == Sampling(**settings)
        assert model.stop_ids == (3, 0)
        path.write_text(json.dumps({"do_sample": False, **settings}))
        assert generation.load_model(folder).sampling == Sampling(repetition_penalty=1.05)
        path.write_text(json.dumps({"do_sample": True, "temperature": 0, "eos_token_id": None}))
        assert generation.load_model(folder).sampling.greedy
        assert generation.load_model(folder).stop_ids == (3,)
        for wrong in (
            {"temperature": -1},
            {"temperature": 10**400},
            {"top_k": 2.5},
            {"top_p": 0},
            {"repetition_penalty": 0},
            {"do_sample": "no"},
        ):
            path.write_text(json.dumps({"do_sample": True} | wrong))
            with pytest.raises(UserError, match=r"generation_config\.json"):
                generation.load_model(folder)
    finally:
        path.unlink()


def test_the_template_file_comes_first(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    try:
        path.write_text("{{ bos_token }}!")
        template = generation.load_model(folder).chat_template
        assert template is not None
        assert template.render([]) == "<|startoftext|>!"
    finally:
        path.unlink()


def test_template_and_special_tokens_from_other_places(folder: Path, tmp_path: Path) -> None:
    """A list of named templates, and the older file of special tokens."""
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    other = tmp_path / "model" / "special_tokens_map.json"
    named = [
        1,
        {"name": "tool_use", "template": "tools: {{ tools[0].name }}"},
        {"name": "default", "template": "{{ bos_token }}"},
    ]
    path.write_text(json.dumps({"chat_template": named}))
    other.write_text(json.dumps({"bos_token": "<old>"}))
    template = generation.load_model(tmp_path / "model").chat_template
    assert template is not None
    assert template.render([]) == "<old>"
    assert template.render([], tools=[{"name": "a"}]) == "tools: a"
    assert template.render([], tools=[{"name": "a"}], name="default") == "<old>"
    with pytest.raises(
        UserError, match=r"no chat template 'rag'; allowed: \['default', 'tool_use'\]"
    ):
        template.render([], name="rag")


def test_templates_in_files_of_their_own(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("plain")
    more = tmp_path / "model" / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("{{ tools | tojson }}")
    model = generation.load_model(tmp_path / "model")
    assert model.decode(model.encode_chat([])) == "plain"
    assert model.decode(model.encode_chat([], tools=[{"a": 1}])) == '[{"a": 1}]'


def test_variables_reach_the_template(model: generation.Model) -> None:
    template = ChatTemplate("{% if think is defined %}{{ think }}{% else %}none{% endif %}")
    asking = replace(model, chat_template=template)
    assert asking.decode(asking.encode_chat([])) == "none"
    assert asking.decode(asking.encode_chat([], variables={"think": False})) == "False"


def test_the_checkpoints_own_stop_strings_end_a_reply(model: generation.Model) -> None:
    whole = "".join(generation.stream(model, "Hello", max_new_tokens=40))
    own, given = whole[9:11], whole[4:6]
    stopping = replace(model, stop_strings=(own,))
    cut = "".join(generation.stream(stopping, "Hello", max_new_tokens=40))
    assert cut == whole[: whole.index(own)]
    cut = "".join(generation.stream(stopping, "Hello", max_new_tokens=40, stop_strings=[given]))
    assert cut == whole[: min(whole.index(own), whole.index(given))]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = generation.load_model(folders.whole(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        next(generation.stream(bare, "Hello"))
    with pytest.raises(ValueError, match="no chat template"):
        bare.encode_chat([])
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        generation.load_model(tmp_path / "model")


def test_a_hub_id_downloads_no_code_and_no_pickles(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert checkpoints.load("LiquidAI/LFM2-350M", revision="main").spec.vocab_size == 261
    assert asked["name"] == "LiquidAI/LFM2-350M"
    assert asked["revision"] == "main"
    assert {files.CONFIG, files.INDEX, "tokenizer.json"} <= set(asked["allow_patterns"])
    assert not any(p.endswith((".py", ".bin", "*")) for p in asked["allow_patterns"])


def test_devices_and_dtypes_of_load_model(folder: Path) -> None:
    model = generation.load_model(folder, torch.bfloat16, "cpu")
    assert model.decoder.embedding.weight.dtype == torch.bfloat16
