"""A worker's answers: to what it knows, to what it does not, and to what goes wrong."""

import json
import os
from typing import Literal

import pytest

from archloop.version import __version__
from archloop.workers import wire
from archloop.workers.messages import VERSION, Done, Request, abi
from archloop.workers.serve import Engine, _Server


class Break(Request[Done]):
    command: Literal["break"] = "break"
    how: str


def _broken(asked: Break) -> Done:
    raise {"disk": OSError(28, "No space left on device"), "bug": KeyError("x")}[asked.how]


@pytest.fixture
def server() -> _Server:
    return _Server({Break: _broken}, lambda name: Engine(f"{name} 7", "a chip; buy one"))


def ask(server: _Server, **request: object) -> dict[str, object]:
    return server.answer(json.dumps(request).encode())


def test_hello_tells_who_answers(server: _Server) -> None:
    told = ask(server, command="hello", wire=VERSION, time_limit_s=5, runtime="toy")
    assert told == {
        "ok": {
            "wire": VERSION,
            "archloop": __version__,
            "engine": "toy 7",
            "abi": abi(),
            "missing": "a chip; buy one",
        }
    }
    assert os.uname().machine in abi()


@pytest.mark.parametrize(
    ("line", "cause", "words"),
    [
        ('{"command": "brake"}', "crash", "known: hello, break"),
        ('{"command": "break"}', "crash", "break: how: Field required"),
        ('{"command": "break", "how": "bug", "x": 1}', "crash", "break: x: Extra inputs"),
        ("[1]", "crash", "request: "),
        ("nonsense", "crash", "request: JSONDecodeError"),
        ('{"command": "break", "how": "disk"}', "disk", "No space left"),
        ('{"command": "break", "how": "bug"}', "crash", "break: KeyError"),
    ],
)
def test_what_goes_wrong_is_an_answer_too(
    server: _Server, line: str, cause: str, words: str
) -> None:
    answer = server.answer(line.encode())["error"]
    assert answer["cause"] == cause
    assert words in answer["detail"]
    assert "\n" not in answer["detail"]


def test_every_command_says_what_answers_it() -> None:
    names = [message.model_fields["command"].default for message in wire.COMMANDS]
    assert len(set(names)) == len(names)
    assert names[0] == "hello"
    for message in wire.COMMANDS:
        assert message.answer_type().model_config["frozen"]
        assert message.model_config["extra"] == "forbid"
