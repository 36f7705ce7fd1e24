"""A checkpoint's tokenizer inside a GGUF file, so that llama.cpp's own programs chat with it.

llama.cpp cuts text by rules of its own, and the file names which ones ("pre"). Nothing in a
checkpoint says that name: llama.cpp's converter knows it by the tokens of one text. So here each
name is tried on a file without weights, and the one that gives the checkpoint's own token ids on a
text with everything that tokenizers differ in is written. Where none does, or where the tokenizer
is no byte-level BPE, the file stays as it is: text cut wrongly would be worse than none.

Source: ``conversion/base.py`` of llama.cpp (``get_vocab_base``).
"""

import ctypes
import json
from pathlib import Path
from typing import Any, NamedTuple

from archloop.runtimes.gguf.engine import engine
from archloop.scratch import Scratch

RULES = ("smollm", "lfm2", "llama-bpe", "qwen2", "gpt-2", "gpt-4o")
"""llama.cpp's names of the ways to cut text that are tried, in this order."""
PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n🚀 (normal) 😶\u200d🌫️ ✅ 🦙🦙 3 33 333 3333 33333 "
    "3.3 3..3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天\uff5e ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'LL make it, We'Ve a'lL\r\n end  "
)
"""Most of the text by which llama.cpp's converter tells tokenizers apart."""
MALFORMED = "its tokenizer.json is malformed"
_KEY = "tokenizer."


class Vocabulary(NamedTuple):
    """Tokens by id, and what each is to llama.cpp (``gguf.TokenType``)."""

    tokens: list[str]
    types: list[int]


def add(model: Path, folder: Path) -> str | None:
    """Put a checkpoint's tokenizer into a file; returns why that cannot be, or None if it is there.

    Args:
        model: a GGUF file without a tokenizer; it is replaced.
        folder: the checkpoint's.
    """
    from gguf import GGUFReader
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return "the checkpoint has no tokenizer.json"
    reader = GGUFReader(model)
    size = int(_contents(reader, "vocab_size"))
    try:
        vocabulary = _read(folder, size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return MALFORMED
    if isinstance(vocabulary, str):
        return vocabulary
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # The library raises plain Exception.
        return MALFORMED
    wanted = tokenizer.encode(PROBE, add_special_tokens=False).ids
    with Scratch("vocabulary", model.parent) as scratch:
        draft = Path(scratch) / "draft.gguf"
        for rules in RULES:
            _write(reader, draft, folder, vocabulary, rules, tensors=False)
            if tokens(draft, PROBE) == wanted:
                _write(reader, draft, folder, vocabulary, rules, tensors=True)
                draft.replace(model)
                return None
    return "llama.cpp cuts text in no way that gives this tokenizer's ids"


def has_one(model: Path) -> bool:
    """Whether a file holds a tokenizer."""
    from gguf import GGUFReader

    found = GGUFReader(model).fields.get("tokenizer.ggml.model")
    return found is not None and found.contents() != "no_vocab"


def tokens(model: Path, text: str) -> list[int]:
    """What llama.cpp makes of a text, with a file's tokenizer."""
    llama = engine()
    settings = llama.llama_model_default_params()
    settings.vocab_only = True
    loaded = llama.llama_model_load_from_file(str(model).encode(), settings)
    if not loaded:
        return []
    raw = text.encode()
    room = (ctypes.c_int32 * (len(raw) + 8))()
    try:
        vocab = llama.llama_model_get_vocab(loaded)
        count = llama.llama_tokenize(vocab, raw, len(raw), room, len(room), False, True)
    finally:
        llama.llama_model_free(loaded)
    return list(room[: max(count, 0)])


def _contents(reader: Any, name: str) -> Any:
    """A key of the file's architecture."""
    arch = reader.fields["general.architecture"].contents()
    return reader.fields[f"{arch}.{name}"].contents()


def _read(folder: Path, size: int) -> Vocabulary | str:
    """The tokens of a checkpoint, or why llama.cpp has no way to hold them.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the file is no tokenizer's.
    """
    from gguf import TokenType

    told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, cut = told["model"], told.get("pre_tokenizer") or {}
    parts = [cut, *cut.get("pretokenizers", [])]
    if model.get("type") != "BPE" or all(part.get("type") != "ByteLevel" for part in parts):
        return "only byte-level BPE tokenizers are written into GGUF files"
    added = {each["id"]: each for each in told.get("added_tokens", [])}
    by_id = {number: token for token, number in model["vocab"].items()}
    if max([*by_id, *added], default=-1) >= size:
        return f"the tokenizer has ids above the model's {size}"
    found = Vocabulary([], [])
    for number in range(size):
        if number in added:
            token, special = added[number]["content"], added[number]["special"]
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        elif number in by_id:
            token, kind = by_id[number], TokenType.NORMAL
        else:
            token, kind = f"[PAD{number}]", TokenType.UNUSED
        found.tokens.append(token)
        found.types.append(int(kind))
    return found


def _write(
    reader: Any, file: Path, folder: Path, vocabulary: Vocabulary, rules: str, *, tensors: bool
) -> None:
    """The file again with a tokenizer, with its tensors as they are or without any."""
    from gguf import GGUFValueType, GGUFWriter, SpecialVocab

    writer = GGUFWriter(file, arch=reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "general.architecture", _KEY)):
            continue
        value_type = field.types[0]
        is_list = value_type == GGUFValueType.ARRAY
        sub_type = field.types[-1] if is_list else None
        writer.add_key_value(name, field.contents(), value_type, sub_type=sub_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rules)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    special = SpecialVocab(folder, load_merges=True, n_vocab=len(vocabulary.tokens))
    special.add_to_gguf(writer, quiet=True)
    for tensor in reader.tensors if tensors else ():
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
