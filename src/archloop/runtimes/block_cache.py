"""Lowered pieces on disk, by what they compute, for which engine, at which versions.

A folder of the user's cache holds one folder a piece; its name is a hash of the piece, runtime,
quantisation, `Runtime.written_by` and this package's code. A piece appears whole or not at all,
and its checksums are compared each time it is read; what was damaged is lowered again. Nothing is
ever changed, so processes may share the folder.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from archloop.files import default_cache_dir, write_atomic
from archloop.runtimes.artifact import checksums
from archloop.runtimes.pieces import Piece, code_digest

_INDEX = "piece.json"


class BlockCache:
    """Lowered pieces of one runtime and quantisation.

    Args:
        runtime: the plug-in's name.
        writers: versions of all that lowers them.
        quant: of the pieces.
        folder: if None, the user's cache.

    Attributes:
        hits: pieces that were there.
        misses: pieces that were lowered.
    """

    def __init__(self, runtime: str, writers: str, quant: str, folder: Path | None = None) -> None:
        self._folder = folder or default_cache_dir() / "pieces"
        self._of = f"{runtime} {writers} {quant} {code_digest()}"
        self.hits = self.misses = 0

    def get(
        self, piece: Piece, lower: Callable[[Piece, Path], dict[str, int]]
    ) -> tuple[Path, dict[str, int]]:
        """The folder of a lowered piece, and its weight bytes by precision.

        Args:
            piece: wanted.
            lower: writes its files into an empty folder, where it is not there yet; returns weight
                bytes by precision.

        Raises:
            OSError: the cache cannot be written.
        """
        digest = hashlib.sha256(f"{self._of} {piece.digest}".encode()).hexdigest()[:32]
        home = self._folder / digest
        if (found := _read(home)) is not None:
            self.hits += 1
            return home, found
        self.misses += 1
        draft = self._folder / f".{digest}.{secrets.token_hex(4)}"
        draft.mkdir(parents=True)
        try:
            weight_bytes = lower(piece, draft)
            content = {
                "piece": f"{piece.part} {piece.spec.to_json()}",
                "of": self._of,
                "weight_bytes": weight_bytes,
                "files": checksums(draft),
            }
            write_atomic(draft / _INDEX, json.dumps(content, indent=1).encode())
            if home.exists() and _read(home) is None:
                shutil.rmtree(home)
            try:
                draft.rename(home)
            except OSError:
                # Another process was faster.
                if _read(home) is None:
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return home, weight_bytes


def _read(home: Path) -> dict[str, int] | None:
    """Weight bytes of a piece that is there and unchanged; None where it is not."""
    try:
        index = json.loads((home / _INDEX).read_bytes())
        expected, weight_bytes = index["files"], index["weight_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = checksums(home)
    found.pop(_INDEX, None)
    return dict(weight_bytes) if found == expected else None
