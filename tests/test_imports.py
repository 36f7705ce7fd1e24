"""What must load without torch does, in a fresh process; plug-ins are found without importing."""

import subprocess
import sys

import pytest

TORCH_FREE = [
    "archloop",
    "archloop.cli",
    "archloop.report",
    "archloop.store.record",
    "archloop.search.strategies",
    "archloop.search.strategies.nsga2",
    "archloop.search.strategies.random",
    "archloop.stack.spec",
]
NO_OPTUNA = ["archloop.training.loop", "archloop.stack.decoder", "archloop.text.corpora"]


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", TORCH_FREE)
def test_import_leaves_torch_alone(name: str) -> None:
    assert "torch" not in modules_after(f"import {name}")


@pytest.mark.parametrize("name", NO_OPTUNA)
def test_import_leaves_optuna_and_plotly_alone(name: str) -> None:
    assert not {"optuna", "plotly"} & modules_after(f"import {name}")


def test_listing_plugins_imports_none_of_them() -> None:
    loaded = modules_after("from archloop import registry; registry.names('mixers')")
    assert "torch" not in loaded


def test_help_is_quick_to_load() -> None:
    code = "import sys; sys.argv = ['archloop', '--help']\nfrom archloop.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass"
    assert "torch" not in modules_after(code)
