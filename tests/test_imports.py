"""What must load without torch does, in a fresh process; plug-ins are found without importing."""

import subprocess
import sys

import pytest

TORCH_FREE = [
    "archloop",
    "archloop.cli",
    "archloop.findings.verdict",
    "archloop.report",
    "archloop.store.record",
    "archloop.search.strategies",
    "archloop.search.strategies.nsga2",
    "archloop.search.strategies.model",
    "archloop.search.strategies.random",
    "archloop.search.strategies.random_uniform",
    "archloop.search.strategies.star",
    "archloop.stack.spec",
]
GPU_MACHINE = ["text", "blocks", "stack", "checkpoints", "generation", "training"]
"""What must run on a machine that has PyTorch and nothing of a search or a report."""


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def failure(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", TORCH_FREE)
def test_import_leaves_torch_alone(name: str) -> None:
    assert "torch" not in modules_after(f"import {name}")


def test_import_of_every_file_leaves_optuna_and_plotly_alone() -> None:
    """One process for all packages, as each would import PyTorch anew."""
    code = f"""
import importlib, pkgutil, sys
for name in {GPU_MACHINE}:
    folder = importlib.import_module("archloop." + name)
    for found in pkgutil.walk_packages(folder.__path__, folder.__name__ + "."):
        if ".gpu" not in found.name:
            importlib.import_module(found.name)
    loaded = {{"optuna", "plotly", "sqlalchemy", "matplotlib"}} & sys.modules.keys()
    assert not loaded, f"archloop.{{name}} imports {{loaded}}"
"""
    assert {f"archloop.{name}" for name in GPU_MACHINE} <= modules_after(code)


def test_every_part_is_there_after_importing_the_package_and_is_loaded_when_asked_for() -> None:
    loaded = modules_after("import archloop; archloop.errors; dir(archloop)")
    assert "archloop.errors" in loaded
    assert not {"archloop.checkpoints", "archloop.stack", "torch"} & loaded
    loaded = modules_after("import archloop; archloop.checkpoints; archloop.search")
    assert {"archloop.checkpoints", "archloop.search"} <= loaded


def test_an_unknown_part_is_an_attribute_error() -> None:
    assert "no attribute 'checkpoint'" in failure("import archloop; archloop.checkpoint")


def test_listing_plugins_imports_none_of_them() -> None:
    loaded = modules_after("from archloop import registry; registry.names('mixers')")
    assert "torch" not in loaded


def test_help_is_quick_to_load() -> None:
    code = "import sys; sys.argv = ['archloop', '--help']\nfrom archloop.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass"
    assert "torch" not in modules_after(code)
