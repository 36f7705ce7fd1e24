"""YAML as plain data: what a recipe may be written in, and nothing that runs or explodes.

Mappings, lists and scalars only. Tags, anchors and aliases, merge keys, keys given twice, several
documents, deep nesting and large files are refused, each with one line that names the place.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from archloop.errors import UserError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_INTEGER = 2**63 - 1


class PlainYamlError(UserError):
    """A file that is not plain YAML; the message is one line and starts with the file's name."""


class _Loader(yaml.SafeLoader):
    """Words and numbers as YAML 1.2 has them, and ``1_000`` besides.

    PyYAML's own rules are of YAML 1.1: there ``1e-3`` is text, ``0123`` is 83, ``1:30`` is 90 and
    ``no`` is false.
    """


_Loader.yaml_implicit_resolvers = {}
_WORDS = {
    "null": ("~|null|Null|NULL|", [*"~nN", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
}
for _kind, (_pattern, _first) in _WORDS.items():
    # The first that fits decides, so whole numbers come before others.
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _whole_number(loader: yaml.SafeLoader, node: ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 16 if text.startswith("0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def load(path: Path) -> tuple[Any, bytes]:
    """Parse a file.

    Returns:
        The data, and the bytes they were read from.

    Raises:
        PlainYamlError: unreadable, too large, not UTF-8, or not plain YAML.
    """
    content = _read(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlainYamlError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from (error)
    return parse(text, str(path)), content


def parse(text: str, name: str) -> Any:
    """Parse text; `name` is what messages call it. Raises as `load`."""
    try:
        _refuse_unplain(text, name)
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise PlainYamlError(f"{name}: empty; a recipe needs at least name and space")
        for key, line in _repeated_keys(node):
            raise PlainYamlError(f"{name}:{line}: key {key!r} is given twice; remove one")
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = " ".join((error.problem or str(error)).split())
        raise PlainYamlError(
            f"{where}: not valid YAML: {problem}; check the indentation"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, PlainYamlError):
            raise
        problem = " ".join(str(error).split())
        raise PlainYamlError(f"{name}: not valid YAML: {problem}; correct the file") from error
    _refuse_extreme(data, name, "")
    return data


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise PlainYamlError(f"{path}: {what}; give the path of a recipe")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PlainYamlError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise PlainYamlError(f"{path}: larger than {MAX_BYTES} bytes; a recipe is a short file")
    return content


def _refuse_unplain(text: str, name: str) -> None:
    """Go through the parser's events, which build nothing, so that nothing can blow up."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise PlainYamlError(f"{where}: a second document; keep one in a file")
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if anchor is not None:
            raise PlainYamlError(
                f"{where}: anchors and aliases are not allowed ({anchor!r}); write the value out"
            )
        if tag is not None:
            raise PlainYamlError(f"{where}: the tag {tag!r} is not allowed; remove it")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise PlainYamlError(f"{where}: merge keys (<<) are not allowed; write the keys out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise PlainYamlError(f"{where}: nested deeper than {MAX_DEPTH} levels; flatten it")


def _repeated_keys(node: Node) -> Iterator[tuple[str, int]]:
    if isinstance(node, MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                line = key.start_mark.line + 1
                raise ValueError(f"line {line}: a key must be a plain word")
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)


def _refuse_extreme(data: Any, name: str, path: str) -> None:
    """Numbers that are not finite, or that no machine integer holds."""
    if isinstance(data, float) and not math.isfinite(data):
        raise PlainYamlError(f"{name}: {path or 'value'} is {data}; give a finite number")
    if isinstance(data, int) and abs(data) > MAX_INTEGER:
        raise PlainYamlError(f"{name}: {path or 'value'} exceeds {MAX_INTEGER}; give a smaller one")
    items: Any = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    for key, value in items:
        _refuse_extreme(value, name, f"{path}.{key}" if path else str(key))
