"""docs/wire.md says what the types say, and its conversation is one that they accept."""

import json
import re
from pathlib import Path

import pytest

from archloop.workers import wire
from archloop.workers.messages import Failure
from archloop.workers.page import messages, updated

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()


def test_the_page_is_current() -> None:
    assert updated(PAGE) == PAGE, "run python -m archloop.workers.page docs/wire.md"


def test_every_field_is_explained() -> None:
    assert "|  |" not in messages()
    for kind in wire.COMMANDS:
        assert f"### `{kind.model_fields['command'].default}`" in PAGE


def test_the_conversation_is_valid() -> None:
    lines = re.findall(r"^([<>]) (\{.*\})$", PAGE, re.M)
    kinds = {kind.model_fields["command"].default: kind for kind in wire.COMMANDS}
    asked = None
    for mark, text in lines:
        data = json.loads(text)
        if mark == ">":
            asked = kinds[data["command"]]
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
