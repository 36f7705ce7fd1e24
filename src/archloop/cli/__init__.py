"""The command line: one file for each verb, and what they share in `command`.

archloop search recipes/quickstart.yaml
python -m archloop --help
"""

from archloop.cli import corpus, eval, generate, plan, plugins, presets, profile, report, search  # noqa: A004
from archloop.cli.command import app, main

__all__ = [
    "app",
    "corpus",
    "eval",
    "generate",
    "main",
    "plan",
    "plugins",
    "presets",
    "profile",
    "report",
    "search",
]
