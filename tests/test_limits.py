"""The house's limits: sizes of files and functions, docstrings, names, private files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted(SRC.rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES = 500, 60


def module(file: Path) -> str:
    return ".".join(file.relative_to(SRC).with_suffix("").parts)


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Functions of a file with their lines, docstrings included; not Triton kernels."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            marks = {ast.unparse(mark).split("(")[0] for mark in node.decorator_list}
            if not marks & {"triton.jit", "any_length"}:
                assert node.end_lineno is not None
                yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("file", FILES, ids=module)
def test_a_file_is_short_and_says_what_it_is(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is and its one idea"
    assert file.stem not in ("utils", "common", "helpers", "misc")


def test_functions_are_short() -> None:
    long = {
        f"{module(file)}.{name}"
        for file in FILES
        for name, lines in functions(file)
        if lines > MOST_FUNCTION_LINES
    }
    assert not long


def test_no_private_file_is_imported_by_another_package() -> None:
    found = []
    for file in FILES:
        here = module(file).rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("archloop"):
                named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                for name in named:
                    package, _, last = (name or "").rpartition(".")
                    is_private = last.startswith("_") and not last.startswith("__")
                    if is_private and package != here:
                        found.append((module(file), name))
    assert not found
