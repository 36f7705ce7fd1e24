"""A wheel works without the clone: the command, its recipes, presets and templates are inside."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import archloop

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ci


def run(*call: str | Path, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in call], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`archloop` of a fresh environment that has the wheel, and the other packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    run("git", "clone", "-q", ROOT, source, cwd=folder)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    run(*build, source, cwd=folder)
    (wheel,) = folder.glob("archloop-*.whl")
    place = folder / "env"
    venv.create(place, with_pip=False)
    site = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python"]
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared) + "\n")
    return place / "bin" / "archloop"


def test_the_command_is_there_and_comes_from_the_wheel(command: Path, tmp_path: Path) -> None:
    assert run(command, "--version", cwd=tmp_path) == f"archloop {archloop.__version__}\n"
    script = "import archloop; print(archloop.__file__)"
    where = run(command.parent / "python", "-c", script, cwd=tmp_path)
    assert where.startswith(str(command.parents[1]))
    assert "lfm2-350m" in run(command, "presets", cwd=tmp_path)


def test_init_writes_recipes_that_plan_accepts(command: Path, tmp_path: Path) -> None:
    run(command, "init", "--plugin", cwd=tmp_path)
    assert (tmp_path / "plugins" / "mixers" / "my_mixer.py").is_file()
    told = run(command, "plan", "laptop.yaml", "--no-probe", "--no-kits", cwd=tmp_path)
    assert "my_mixer" in told
