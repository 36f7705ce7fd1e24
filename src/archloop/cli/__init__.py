"""The command line: one file for each verb, and what they share in `command`.

archloop search recipes/quickstart.yaml
python -m archloop --help
"""

from archloop.cli import (
    attribute,
    blocks,
    compare,
    corpus,
    doctor,
    eval,  # noqa: A004  (a verb has its module's name)
    export,
    extend,
    generate,
    init,
    plan,
    plugins,
    presets,
    profile,
    quantised,
    report,
    rerank,
    search,
    train,
)
from archloop.cli.command import app, main

__all__ = [
    "app",
    "attribute",
    "blocks",
    "compare",
    "corpus",
    "doctor",
    "eval",
    "export",
    "extend",
    "generate",
    "init",
    "main",
    "plan",
    "plugins",
    "presets",
    "profile",
    "quantised",
    "report",
    "rerank",
    "search",
    "train",
]
