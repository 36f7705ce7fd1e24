"""Evaluations whose questions lie in somebody else's package: read from its archive, never run.

A package is downloaded once, as the corpus builder downloads its sources, and is neither installed
nor unpacked. Its questions are for evaluation alone, so solved examples before a question come from
a small part of them that is never asked, and no corpus may share their words
(`evals.contamination`).
"""

import functools
import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from archloop.errors import UserError
from archloop.evals.base import Split
from archloop.files import default_cache_dir
from archloop.text.fetch import packages

Item = TypeVar("Item", bound=tuple[Any, ...])
logger = logging.getLogger(__name__)
SHOWN_SHARE = 8
"""One question in so many is for showing how it is answered, and is not asked."""
LETTERED = re.compile(r"^\s*([A-Z])\.\s*(.*\S)\s*$")


class Package(NamedTuple):
    """A wheel of PyPI, pinned, and the licence of what is read from it."""

    name: str
    licence: str

    def file(self) -> Path | None:
        """The downloaded wheel, if it is here."""
        return packages.downloaded("pypi", self.name, _folder())

    def missing(self) -> str:
        """Nothing, or how to get it."""
        if self.file() is not None:
            return ""
        return f"{self.name} was not fetched; run: archloop eval --suite external --fetch"

    def fetch(self) -> Path:
        """Download it unless it is here.

        Raises:
            UserError: it cannot be downloaded.
        """
        file = packages.download("pypi", self.name, _folder())
        assert file is not None
        return file

    def lines(self, member: str) -> list[Any]:
        """Values of a member's JSON lines; what is no JSON is passed over, and logged by number.

        Raises:
            UserError: the package is not here, is damaged, or has no such member.
        """
        file = self.file()
        if file is None:
            raise UserError(self.missing())
        return _lines(file, file.stat().st_mtime_ns, member)


class Lettered(NamedTuple):
    """A question with lettered options.

    Attributes:
        asked: everything before the options.
        options: without their letters.
        right: index of the right one.
    """

    asked: str
    options: tuple[str, ...]
    right: int

    @property
    def listed(self) -> str:
        """The options, a line each."""
        return "\n".join(f"{chr(65 + i)}. {option}" for i, option in enumerate(self.options))


def lettered(text: str, answer: str) -> Lettered | None:
    """A question whose last lines are ``A. ...``, ``B. ...`` and whose answer is a letter or such
    a line; None where it is not of this form.
    """
    lines = text.strip().splitlines()
    options: list[str] = []
    while lines and (match := LETTERED.match(lines[-1])):
        options.insert(0, match[2])
        lines.pop()
        if match[1] == "A":
            break
    right = ord(answer.strip(" []")[:1] or "?") - 65
    letters_fit = bool(options) and 0 <= right < len(options) and len(set(options)) == len(options)
    if not letters_fit or len(options) < 2 or not lines:
        return None
    return Lettered("\n".join(lines).strip(), tuple(options), right)


def part(items: Sequence[Item], split: Split) -> list[Item]:
    """Those that are shown (``train``) or asked (``test``), each by a hash of its first field."""
    return [item for item in items if _is_shown(item[0]) == (split == "train")]


def chosen(items: Sequence[Item], split: Split, seed: int, count: int) -> list[Item]:
    """Some of a split, or all of it in a random order where there are fewer.

    Raises:
        UserError: there are fewer than two.
    """
    found = part(items, split)
    if len(found) < 2:
        raise UserError(f"the package has {len(found)} questions of the {split} split, too few")
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[int(place)] for place in order]


def _is_shown(text: Hashable) -> bool:
    return hashlib.sha256(repr(text).encode()).digest()[0] % SHOWN_SHARE == 0


def _folder() -> Path:
    return default_cache_dir() / "packages"


@functools.lru_cache(maxsize=64)
def _lines(file: Path, changed_ns: int, member: str) -> list[Any]:
    del changed_ns  # A file that was replaced is read again.
    try:
        with zipfile.ZipFile(file) as archive:
            text = archive.read(member).decode("utf-8", "replace")
    except KeyError as error:
        raise UserError(f"{file} has no {member}; delete it to download it again") from error
    except packages.DAMAGE as error:
        raise UserError(f"{file} is damaged ({error}); delete it to download it again") from error
    found, bad = [], []
    # Text in JSON may hold any other line break.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            bad.append(number)
    if bad:
        shown = ", ".join(map(str, bad[:10]))
        logger.warning("%s: %d lines are no JSON and left out: %s", member, len(bad), shown)
    return found
