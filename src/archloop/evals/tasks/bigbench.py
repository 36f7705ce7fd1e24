"""Chosen multiple-choice tasks of BIG-bench, without solved examples, as its JSON files ask them.

BIG-bench (arXiv 2206.04615): a question stands behind its task's own opening words, and the answer
is the likeliest of the choices; listed before it where the task says so, in an order that a hash of
the question decides: a file may name the right choice first, and BIG-bench shuffles them too.
Questions with more or fewer than one right choice are left out. They are for evaluation alone.
"""

import hashlib
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict

from archloop.errors import UserError
from archloop.evals.base import Split
from archloop.evals.packaged import chosen, part
from archloop.evals.source_archive import SourceArchive
from archloop.evals.text_tasks import Choice, ChoiceTask

Subset = Literal[
    "logical_deduction",
    "tracking_shuffled_objects",
    "date_understanding",
    "reasoning_about_colored_objects",
    "navigate",
    "temporal_sequences",
    "sports_understanding",
    "strategyqa",
    "vitaminc_fact_verification",
    "elementary_math_qa",
    "arithmetic",
    "intent_recognition",
    "hyperbaton",
    "language_identification",
    "parsinlu_qa",
    "swahili_english_proverbs",
    "kannada",
    "cryobiology_spanish",
]
_PARTS: dict[Subset, str] = {
    "logical_deduction": "/three_objects",
    "tracking_shuffled_objects": "/three_objects",
    "elementary_math_qa": "/question_only",
    "arithmetic": "/2_digit_addition",
}
"""Of tasks that consist of several, the one that is asked."""
_CATEGORIES: dict[str, tuple[Subset, ...]] = {
    "knowledge": ("strategyqa", "sports_understanding"),
    "mathematics": ("elementary_math_qa", "arithmetic"),
    "tools": ("intent_recognition",),
    "languages": (
        *("hyperbaton", "language_identification", "parsinlu_qa", "swahili_english_proverbs"),
        *("kannada", "cryobiology_spanish"),
    ),
}
"""All others are of reasoning."""


def _member(subset: Subset) -> str:
    return f"bigbench/benchmark_tasks/{subset}{_PARTS.get(subset, '')}/task.json"


ARCHIVE = SourceArchive(
    "bigbench-1.0.0",
    "Apache-2.0, texts of some tasks by their sources",
    "358 MB",
    tuple(_member(subset) for subset in get_args(Subset)),
)


class _Item(NamedTuple):
    """A question as it is asked, what may follow it, and which of these is right."""

    asked: str
    options: tuple[str, ...]
    right: int


class BigBench(ChoiceTask):
    """Multiple choice of one task."""

    version = 2
    licence = ARCHIVE.licence
    is_given = True

    class Config(BaseModel):
        """Which task."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        subset: Subset = "logical_deduction"

    config: Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        found = [name for name, subsets in _CATEGORIES.items() if self.config.subset in subsets]
        self.category = found[0] if found else "reasoning"

    @property
    def chance(self) -> float:
        """Mean over what is asked; one of four where the archive is not here."""
        if self.missing():
            return 0.25
        asked = part(self._items(), "test")
        return sum(1 / len(item.options) for item in asked) / len(asked)

    def missing(self) -> str:
        """See `Evaluation.missing`."""
        return ARCHIVE.missing()

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        """See `ChoiceTask.questions`; fewer where the task has fewer."""
        return [
            Choice(item.asked, tuple(f" {option}" for option in item.options), item.right)
            for item in chosen(self._items(), split, seed, num_examples)
        ]

    def _items(self) -> list[_Item]:
        task = ARCHIVE.value(_member(self.config.subset))
        try:
            items = [_item(task, example) for example in task["examples"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{ARCHIVE.chosen} is no BIG-bench task ({error}); delete it"
            ) from error
        # The same paragraph may be asked about in several ways; what stands there twice is one.
        return list(dict.fromkeys(item for item in items if item is not None))


def _item(task: dict[str, Any], example: dict[str, Any]) -> _Item | None:
    """An example by BIG-bench's own defaults; None where not just one choice is right."""
    given: dict[str, float] = example.get("target_scores") or {}
    order = sorted(given, key=lambda option: _place(example["input"], option))
    scores = {option: given[option] for option in order}
    options = tuple(option.strip() for option in scores)
    right = [place for place, score in enumerate(scores.values()) if score == 1]
    if len(options) < 2 or len(right) != 1 or len(set(options)) < len(options) or "" in options:
        return None
    asked = task.get("example_input_prefix", "\nQ: ") + example["input"]
    if task.get("append_choices_to_input", True):
        before = task.get("choice_prefix", "\n  choice: ")
        asked += "".join(before + option for option in options)
    asked += task.get("example_output_prefix", "\nA: ")
    # A space at the end belongs to the choice, as tokenizers cut it.
    return _Item((task.get("task_prefix", "") + asked).strip(), options, right[0])


def _place(asked: str, option: str) -> bytes:
    """Where an option stands among those of its question: by a hash, so in no order that tells."""
    return hashlib.sha256(f"{asked}\n{option}".encode("utf-8", "replace")).digest()
