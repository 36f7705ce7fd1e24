"""Every evaluation of the library keeps its contract, by itself and as the full suite has it."""

from collections.abc import Callable
from functools import partial

from archloop import registry
from archloop.evals import suites
from archloop.evals.base import Evaluation
from archloop.evals.haystacks import HAYSTACKS
from archloop.testing import EvaluationContract


class TestEvaluations(EvaluationContract):
    names = registry.shipped("tasks")

    @classmethod
    def entries(cls) -> dict[str, Callable[[], Evaluation]]:
        named = {
            f"{suite}:{name}": partial(suites.make, *entry)
            for suite in ("full", "external")
            for name, entry in suites.SUITES[suite].items()
        }
        haystacks = {
            f"needle:{variant}": partial(
                suites.make, "needle", {"variant": variant, "num_chars": 400}
            )
            for variant in HAYSTACKS
        }
        return super().entries() | named | haystacks
