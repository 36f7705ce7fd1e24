"""docs/wire.md says what the types say, and its conversation is one that they accept."""

import json
import re
from pathlib import Path

import pytest

from archloop.workers import wire
from archloop.workers.messages import VERSION, Failure
from archloop.workers.page import messages, updated

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()


def test_the_page_is_current() -> None:
    assert updated(PAGE) == PAGE, "run python -m archloop.workers.page docs/wire.md"


def test_every_field_is_explained() -> None:
    assert "|  |" not in messages()
    for message in wire.COMMANDS:
        assert f"### `{message.model_fields['command'].default}`" in PAGE


def test_the_conversation_is_valid() -> None:
    lines = re.findall(r"^([<>]) (\{.*\})$", PAGE, re.M)
    commands = {message.model_fields["command"].default: message for message in wire.COMMANDS}
    asked = None
    for mark, text in lines:
        data = json.loads(text)
        assert data.get("ok", data).get("wire", VERSION) == VERSION
        if mark == ">":
            asked = commands[data["command"]]
            asked.model_validate(data)
        elif "error" in data:
            Failure.model_validate(data["error"])
        else:
            assert asked is not None
            asked.answer_type().model_validate(data["ok"])
    assert len(lines) == 12


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the page needs the lines"):
        updated("# nothing")
