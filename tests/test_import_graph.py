"""No circle of files in src/, by any import statement; `ops` imports nothing else of `blocks`."""

from pathlib import Path

import pytest

import import_graph

ROOT = Path(__file__).parents[1] / "src" / "archloop"


@pytest.fixture(scope="module")
def edges() -> import_graph.Graph:
    return import_graph.graph(ROOT)


def test_no_circle_of_files(edges: import_graph.Graph) -> None:
    assert import_graph.circles(edges) == []


def test_ops_import_nothing_of_blocks(edges: import_graph.Graph) -> None:
    outside = {
        (name, other)
        for name, others in edges.items()
        for other in others
        if name.startswith("archloop.blocks.ops") and not other.startswith("archloop.blocks.ops")
    }
    assert {other for _, other in outside} <= {"archloop.errors"}, outside


def package(folder: Path, files: dict[str, str]) -> import_graph.Graph:
    for name, source in files.items():
        file = folder / "house" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return import_graph.graph(folder / "house")


@pytest.mark.parametrize(
    "closing",
    [
        "from house.rooms.kitchen import cook",
        "from house.rooms import kitchen",
        "import house.rooms.kitchen",
        "from .kitchen import cook",
        "from . import kitchen",
        "def eat():\n    from house.rooms.kitchen import cook",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .kitchen import cook",
    ],
)
def test_every_kind_of_import_closes_a_circle(tmp_path: Path, closing: str) -> None:
    files = {
        "__init__": "",
        "rooms/__init__": "",
        "rooms/kitchen": "from house.rooms.cellar import wine\ncook = wine",
        "rooms/cellar": "from house import garden\nwine = garden",
        "garden": "grapes = 1",
        "rooms/hall": "from house.rooms import kitchen",
    }
    assert import_graph.circles(package(tmp_path, files)) == []
    files["garden"] = "from house.rooms import pantry"
    files["rooms/pantry"] = closing
    assert import_graph.circles(package(tmp_path, files)) == [
        ["house.garden", "house.rooms.cellar", "house.rooms.kitchen", "house.rooms.pantry"]
    ]


def test_a_package_that_its_own_file_asks_for_a_name_is_a_circle(tmp_path: Path) -> None:
    files = {
        "__init__": "__version__ = '1'\nfrom house.door import knock",
        "door": "from house import __version__\nknock = __version__",
    }
    assert import_graph.circles(package(tmp_path, files)) == [["house", "house.door"]]
