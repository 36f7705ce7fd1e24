"""Special tokens: from whichever file says them, through load and save, to the same files."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from archloop import checkpoints
from archloop.errors import UserError
from archloop.generation.model import load_model
from archloop.text.special_tokens import SpecialTokens
from checkpoints import folders

SAID = SpecialTokens(bos=1, eos=(2, 5), pad=0)


def with_tokenizer(folder: Path) -> Path:
    folders.tokenizer().save(str(folder / "tokenizer.json"))
    named = {"bos_token": {"content": folders.SPECIAL[1]}, "eos_token": folders.SPECIAL[3]}
    text = json.dumps(named | {"chat_template": folders.TEMPLATE})
    (folder / "tokenizer_config.json").write_text(text)
    return folder


@pytest.mark.parametrize("layout", ["huggingface", "archloop"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_they_survive_load_and_save(file: str, layout: str, tmp_path: Path) -> None:
    """Also over the folder that they came from."""
    folder = folders.whole(tmp_path / "model")
    settings = {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}
    (folder / "generation_config.json").write_text("{}")
    folders.edit_json(folder / file, lambda config: config.update(settings))
    for target in (tmp_path / "copy", folder):
        checkpoints.save(checkpoints.load(folder), target, layout=layout)  # type: ignore[arg-type]
        assert checkpoints.load(target).special_tokens == SAID
        assert load_model(target).stop_ids == (2, 5)
        theirs = transformers.GenerationConfig.from_pretrained(target)
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, [2, 5], 0)


def test_the_tokenizers_own_are_read(tmp_path: Path) -> None:
    """In both layouts a chat stops where the tokenizer's text ends."""
    for layout in ("huggingface", "archloop"):
        folder = tmp_path / layout
        decoder = folders.decoder(folders.spec(vocab_size=261))
        checkpoints.save(decoder, folder, layout=layout)  # type: ignore[arg-type]
        assert checkpoints.load(folder).special_tokens == SpecialTokens()
        with_tokenizer(folder)
        assert checkpoints.load(folder).special_tokens == SpecialTokens(bos=1, eos=(3,))
        assert load_model(folder).stop_ids == (3,)


def test_a_new_decoder_takes_those_of_the_tokenizer_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    decoder = folders.decoder(folders.spec(vocab_size=261))
    checkpoints.save(decoder, with_tokenizer(folder))
    config = json.loads((folder / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 3, None)


def test_nothing_is_made_up(tmp_path: Path) -> None:
    """Keys that are left out would be filled with defaults by transformers."""
    folder = folders.whole(tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    assert not (folder / "generation_config.json").exists()


def test_other_generation_settings_stay(tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    given = {"do_sample": True, "temperature": 0.3, "eos_token_id": 9}
    (folder / "generation_config.json").write_text(json.dumps(given))
    checkpoints.save(folders.decoder(), folder, tokens=SAID)
    said = json.loads((folder / "generation_config.json").read_text())
    tokens = {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}
    assert said == given | tokens
    shutil.rmtree(folder)


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="special token 40 is not in the vocabulary of 40"):
        checkpoints.save(folders.decoder(), tmp_path / "model", tokens=SpecialTokens(eos=(40,)))
