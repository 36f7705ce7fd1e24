"""Pages that are made of the code are whole; the site builds; the notebook runs."""

import sys
from pathlib import Path
from subprocess import run

import pytest

from archloop.cli import app, reference
from archloop.devices import lease

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_commands_has_every_verb_and_option() -> None:
    told = reference.markdown()
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"\n## {command.callback.__name__}\n" in told
    for option in ("--time-limit", "--at-budget", "--design", "--pad", "--weight"):
        assert f"`{option}`" in told
    assert "| `--seed` | Of random weights. | `0` |" in told


@pytest.mark.ci
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser")
    call = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(DOCS), str(tmp_path)]
    done = run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tutorials" / "edge_engineer.html").is_file()


@pytest.mark.ci
@pytest.mark.timeout(700)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    # Its times are looked at by nobody, so that it need not wait until nobody else measures.
    monkeypatch.setenv(lease.ELSEWHERE, str(tmp_path / "leases"))
    notebook = nbformat.read(DOCS / "study.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in shown)
