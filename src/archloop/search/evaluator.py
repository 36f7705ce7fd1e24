"""What a study asks of the world: measure a spec on the devices, train a proxy and score it.

The study itself is a bookkeeper; whoever implements `Evaluator` does the work, in processes of
their own. Tests put a deterministic stand-in here.
"""

from pathlib import Path
from typing import Any, Protocol

from archloop.proxy.record import Rung, TrainJob
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled
from archloop.workers.deaths import Cause


class CandidateFailed(RuntimeError):  # noqa: N818  (how a trial ended, not a fault of ours)
    """A worker crashed, hung or ran out of memory; the message is one line for the trial.

    Attributes:
        cause: why, as of a worker's death.
    """

    def __init__(self, message: str, cause: Cause = "crash") -> None:
        super().__init__(" ".join(message.split()))
        self.cause: Cause = cause


class Unsupported(CandidateFailed):
    """A required target cannot run the spec: neither a broken budget nor a failure."""


class Evaluator(Protocol):
    """Measures and trains."""

    def prepare(self) -> dict[str, Any]:
        """Corpus, tokenizer and devices made ready.

        Returns:
            What identifies them: versions, device, corpus hash.

        Raises:
            UserError: the corpus cannot be read, or a device not be reached; names key and remedy.
        """

    def profile(
        self,
        spec: StackSpec,
        reference: StackSpec,
        look: int,
        directory: Path,
        processes: int | None = None,
    ) -> Profiled:
        """Measure a spec against the reference on each target, until it breaks a budget on one.

        Args:
            spec: at ship width.
            reference: the reference preset, measured in the same run.
            look: 1, or more to add to the samples of the looks before.
            directory: for raw samples; whole samples already there are not taken again.
            processes: of each look at this spec; None takes the recipe's `profile.processes`.

        Raises:
            Unsupported: the runtime of a target that is not optional cannot run the spec.
            CandidateFailed: the candidate crashed, hung or ran out of memory.
            StudyError: what it is measured on is not what the looks before were taken on.
        """

    def train(self, job: TrainJob, directory: Path) -> Rung:
        """Train and score a proxy.

        Args:
            job: what to train, for how many steps, from which seed.
            directory: that the training works in; it may go afterwards.

        Raises:
            CandidateFailed: as `profile`.
        """

    def close(self) -> None:
        """End workers that still run."""
