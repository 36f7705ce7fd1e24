"""Calls of tools in both generations of LFM2's templates, read and never run."""

import pytest

from archloop.text.tool_calls import END, LONGEST, START, Reply, ToolCall, ToolCallError, parse

WEATHER = ToolCall("get_weather", {"city": "Paris", "days": [1, 2]})


@pytest.mark.parametrize(
    "call",
    [
        '[get_weather(city="Paris", days=[1, 2])]',
        "get_weather(city='Paris', days=(1, 2))",
        '[{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2]}}]',
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": [1, 2]}}',
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": [1, 2]}"}',
    ],
)
def test_both_ways_to_write_a_call(call: str) -> None:
    assert parse(f"{START}{call}{END}Looking it up.") == Reply("Looking it up.", (WEATHER,))
    assert parse(f"One moment.\n{START}\n{call}\n{END}") == Reply("One moment.", (WEATHER,))
    # Without special tokens by the tools' names alone.
    assert parse(call, ["get_weather"]) == Reply("", (WEATHER,))
    assert parse(call) == Reply(call, ())


def test_several_calls_in_order_with_every_kind_of_value() -> None:
    text = (
        f'{START}[a(x=-1, y=2.5, z=None, on=True, off=false), b.c(m={{"k": [null, "é"]}})]{END}'
        f"and{START}[d()]{END}"
    )
    assert parse(text) == Reply(
        "and",
        (
            ToolCall("a", {"x": -1, "y": 2.5, "z": None, "on": True, "off": False}),
            ToolCall("b.c", {"m": {"k": [None, "é"]}}),
            ToolCall("d", {}),
        ),
    )


def test_what_is_thought_is_no_call() -> None:
    text = f"<think>I could use {START}[a()]{END}</think>{START}[b(n=1)]{END}"
    reply = parse(text)
    assert reply.calls == (ToolCall("b", {"n": 1}),)
    assert reply.content.startswith("<think>")


@pytest.mark.parametrize(
    "text",
    ["Hello.", "[1, 2]", "f(x)", "[unknown(a=1)]", "", "[get_weather(city=open('x'))]", '{"a": 1}'],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert parse(text, ["get_weather"]) == Reply(text, ())


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("[f(1)]", "no names"),
        ("[f(**{'a': 1})]", "name of its own"),
        ("[f(a=__import__('os').system('x'))]", "no plain value"),
        ("[f(a=b'x')]", "no plain value"),
        ("[f(a=1j)]", "no plain value"),
        ("[f(a=1e999)]", "no plain value"),
        ("[f(a=-1e999)]", "no plain value"),
        ('{"name": "f", "arguments": {"a": 1e999}}', "no call of a tool"),
        ('{"name": "f", "arguments": "{\\"a\\": -1e999}"}', "must be an object"),
        ('{"name": "f", "arguments": {"a": NaN}}', "no call of a tool"),
        ("[f(a={1: 2})]", "must be text"),
        ("[f(a=[x for x in y])]", "no plain value"),
        ("[(lambda: 0)()]", "no name of a tool"),
        ("[1]", "object with a name"),
        ("f(", "no call of a tool"),
        ("f(a=" + "[" * 5000 + "]" * 5000 + ")", "no call of a tool"),
        ('{"name": 1}', "object with a name"),
        ('{"name": "f", "arguments": "["}', "must be an object"),
    ],
)
def test_what_is_no_call_is_said_and_never_run(inside: str, words: str) -> None:
    with pytest.raises(ToolCallError, match=words):
        parse(f"{START}{inside}{END}")


@pytest.mark.parametrize("text", [START + "[f()]", "[f()]" + END, END + START, START + END + END])
def test_special_tokens_come_in_pairs(text: str) -> None:
    with pytest.raises(ToolCallError, match="pairs"):
        parse(text)


def test_a_reply_without_end_is_not_parsed() -> None:
    with pytest.raises(ToolCallError, match="at most"):
        parse("x" * (LONGEST + 1))
