"""Which file of a package imports which, read from the source: every import statement counts.

Imports inside functions and under TYPE_CHECKING count too: a circle of those has no import order
that fails, and still none of its files can be understood, tested or moved without the others.

    python tests/import_graph.py src/archloop
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, set[str]]


def graph(folder: Path) -> Graph:
    """Modules of a package's folder, each with the modules that it names in an import."""
    modules = {module_name(file, folder): file for file in sorted(folder.rglob("*.py"))}
    return {name: set(_imported(file, name, modules)) - {name} for name, file in modules.items()}


def module_name(file: Path, folder: Path) -> str:
    parts = file.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(edges: Graph) -> list[list[str]]:
    """Groups of modules that all reach each other (Tarjan's algorithm), the largest first."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return sorted(found, key=lambda group: (-len(group), group))


def _imported(file: Path, name: str, modules: dict[str, Path]) -> Iterator[str]:
    """Modules named by a file's imports: of ``from a import b``, a.b where that is a module."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                if inner in modules:
                    yield inner
                elif source in modules:
                    yield source


if __name__ == "__main__":
    for circle in circles(graph(Path(sys.argv[1]))):
        sys.stdout.write(" <-> ".join(circle) + "\n")
