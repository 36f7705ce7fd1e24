"""Raw samples: every reading of every process, as `samples.json` keeps them.

The file is the measurement; a `Profile` is a summary that can be computed from it again.
"""

from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.devices.base import DeviceInfo, Readings
from archloop.files import write_atomic
from archloop.profiling.config import ProfileConfig
from archloop.profiling.record import Identity
from archloop.profiling.statistics import percentile
from archloop.profiling.target import Target
from archloop.stack.spec import StackSpec
from archloop.workers.wire import Memory

SAMPLES = "samples.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ContextSamples(_Record):
    """One process at one context.

    Attributes:
        open_s: loading the artifact.
        state_bytes: of the state opened for the context and the decode steps; None where the
            engine does not tell.
        ttft_ms: each timed prefill of the whole prompt, with sampling.
        prefill_pass_ms: where the prompt is too long to be timed whole, each timed prefill pass as
            (tokens in the state before it, ms).
        prefill_pass_tokens: tokens of a pass: as many as the engine takes in at once.
        decode_ms: each timed step, by step group.
        decode_joules: (steps, joules) of each step group, those not timed among the steps; empty
            where the device has no counter of its energy.
        finite: all logits were finite; None where the engine showed none.
    """

    context: int
    open_s: float
    state_bytes: int | None
    ttft_ms: tuple[float, ...]
    prefill_pass_ms: tuple[tuple[int, float], ...]
    prefill_pass_tokens: int
    decode_ms: tuple[tuple[float, ...], ...]
    decode_joules: tuple[tuple[int, float], ...] = ()
    memory: Memory
    finite: bool | None

    @property
    def prefill_ms(self) -> float:
        """Time to the first token: the median prefill, or composed from passes.

        A pass's cost is close to affine in its depth, so the trapezoid rule over evenly spaced
        depths integrates it well; a run against full prefills is in `docs/methodology.md`.
        """
        if self.ttft_ms:
            return median(self.ttft_ms)
        depths = sorted({depth for depth, _ in self.prefill_pass_ms})
        cost = [median(ms for at, ms in self.prefill_pass_ms if at == depth) for depth in depths]
        area = sum(
            (cost[i] + cost[i + 1]) / 2 * (depths[i + 1] - depths[i])
            for i in range(len(depths) - 1)
        )
        mean = area / (depths[-1] - depths[0])
        return mean * self.context / self.prefill_pass_tokens

    @property
    def joules_per_token(self) -> float | None:
        """Energy of a decode step, idle consumption included; None where nothing was counted."""
        steps = sum(count for count, _ in self.decode_joules)
        joules = sum(used for _, used in self.decode_joules)
        return joules / steps if joules > 0 else None

    def decode_quantile_ms(self, share: float) -> float:
        """Quantile of all timed decode steps."""
        return percentile([ms for group in self.decode_ms for ms in group], share)


class ProcessSamples(_Record):
    """One process of the candidate or of the reference.

    Attributes:
        engine_empty: memory of the process once the engine is loaded and no model is.
    """

    engine_empty: Memory
    can_reset_peak: bool
    contexts: tuple[ContextSamples, ...]

    def net_bytes(self, context: ContextSamples) -> int:
        """Peak at a context less the engine's own memory, before it loaded a model."""
        return max(context.memory.engine_peak_bytes - self.engine_empty.engine_peak_bytes, 1)


class PairSamples(_Record):
    """A process of the candidate and the reference's process that was measured beside it.

    Attributes:
        own_cpu_s: processor time of the two and of the parent between the readings.
        was_ready: the device came to rest before the pair started.
        forked: both were forked from a process that had imported the engine, and not started.
    """

    candidate: ProcessSamples
    reference: ProcessSamples | None
    before: Readings
    after: Readings
    own_cpu_s: float
    was_ready: bool
    forked: bool = False


class Samples(_Record):
    """A whole measurement.

    Attributes:
        written_by: what exported the graphs (`artifacts.writing`); None in samples from before it
            was kept.
        weight_bytes: of the candidate's artifact, by precision (`Manifest`).
        pairs: that count.
        disturbed: that do not, since an undisturbed process was measured in their place, or, of two
            that were disturbed, the later one.
        looks: how often processes were added.
    """

    version: Literal[3] = 3
    spec: StackSpec
    reference: StackSpec | None
    target: Target
    config: ProfileConfig
    identity: Identity
    written_by: str | None = None
    weight_bytes: dict[str, int] = {}
    device: DeviceInfo
    pairs: tuple[PairSamples, ...]
    disturbed: tuple[PairSamples, ...] = ()
    looks: int
    seconds: float

    def write(self, directory: Path) -> None:
        """Write `samples.json`, whole or not at all."""
        write_atomic(directory / SAMPLES, self.model_dump_json().encode())


def read_samples(directory: Path) -> Samples:
    """The samples of a measurement.

    Raises:
        ValueError: there are none, or the file is damaged.
    """
    path = directory / SAMPLES
    try:
        return Samples.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{directory} holds no {SAMPLES}; measure it first") from None
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: {error.errors()[0]['msg']}") from error
