"""A checkpoint's special tokens: said in up to three files, and written so that all agree.

``generation_config.json`` comes first, as in transformers, then ``config.json``, then the names in
``tokenizer_config.json``, whose ids the tokenizer knows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from archloop.checkpoints import files
from archloop.errors import UserError
from archloop.text.special_tokens import SpecialTokens

GENERATION = "generation_config.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_ROLES = ("bos", "eos", "pad")
_MAX_TOKENIZER_BYTES = 256 << 20


def read(folder: Path) -> SpecialTokens:
    """The special tokens of a checkpoint's folder.

    Raises:
        UserError: an id is no whole number, or a file is malformed.
    """
    said: dict[str, tuple[int, ...]] = {}
    for file in (GENERATION, files.CONFIG):
        settings = files.read_json(folder, file) or {}
        for role in _ROLES:
            said[role] = said.get(role) or _ids(folder / file, f"{role}_token_id", settings)
    named = texts(folder)
    missing = [role for role in _ROLES if not said[role] and f"{role}_token" in named]
    tokenizer = load_tokenizer(folder) if missing else None
    if tokenizer is not None:
        for role in missing:
            found = tokenizer.token_to_id(named[f"{role}_token"])
            said[role] = () if found is None else (found,)
    return SpecialTokens(_first(said["bos"]), said["eos"], _first(said["pad"]))


def texts(folder: Path) -> dict[str, str]:
    """Special tokens as text, by names such as ``eos_token``."""
    settings = files.read_json(folder, "special_tokens_map.json") or {}
    settings |= files.read_json(folder, "tokenizer_config.json") or {}
    found = {}
    for name in NAMES:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder, None when it has none.

    Raises:
        UserError: ``tokenizer.json`` is malformed.
    """
    text = files.read_text(folder, "tokenizer.json", _MAX_TOKENIZER_BYTES)
    if text is None:
        return None
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # The library raises plain Exception.
        raise UserError(f"{folder / 'tokenizer.json'} is no tokenizer: {error}") from error
    # tokenizer.json may carry the length and padding of its training; prompts here are neither cut
    # nor padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def settings(tokens: SpecialTokens) -> dict[str, int | list[int] | None]:
    """The tokens as keys of a configuration; None says that there is no such token.

    A key that is left out would be filled with a default by whoever reads the file.
    """
    eos = tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos) or None
    return {"bos_token_id": tokens.bos, "eos_token_id": eos, "pad_token_id": tokens.pad}


def check(tokens: SpecialTokens, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        UserError: that.
    """
    for token in (tokens.bos, tokens.pad, *tokens.eos):
        if token is not None and not 0 <= token < vocab_size:
            raise UserError(f"special token {token} is not in the vocabulary of {vocab_size}")


def _ids(file: Path, key: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
    value = settings.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in ids):
        raise UserError(f"{file}: {key}={value!r} must be a token id or a list of them")
    return tuple(ids)


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None
