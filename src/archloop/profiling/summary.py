"""From raw samples to a profile: figures with intervals, ratios to the reference, flags."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from archloop.devices.base import DeviceInfo, Readings
from archloop.profiling.record import Figures, Interval, Profile
from archloop.profiling.samples import ContextSamples, PairSamples, ProcessSamples, Samples
from archloop.profiling.statistics import geometric_mean, interval, ratio_interval

_BUSY_CORES = 0.15
_STOLEN_SHARE = 0.02
_CLOCK_SHARE = 0.05
_HOT_C = 85.0
_LOW_BATTERY_PERCENT = 20

Reading = Callable[[ProcessSamples, ContextSamples], float]

FIGURES: dict[str, Reading] = {
    "ttft_ms": lambda _, at: at.prefill_ms,
    "prefill_tok_per_s": lambda _, at: at.context / at.prefill_ms * 1000,
    "decode_p50_ms": lambda _, at: at.decode_quantile_ms(0.5),
    "decode_p95_ms": lambda _, at: at.decode_quantile_ms(0.95),
    "peak_memory_bytes": lambda _, at: at.memory.engine_peak_bytes,
    # An engine may hold nothing of a card before it has a model, and nothing has no logarithm.
    "engine_empty_bytes": lambda process, _: max(process.engine_empty.engine_peak_bytes, 1),
}


class _Energy(NamedTuple):
    """Joules of a decode step in one pair's processes; None without a reference."""

    candidate: float
    reference: float | None


def profile_from_samples(samples: Samples) -> Profile:
    """The profile that the samples amount to; nothing else enters."""
    candidates = [pair.candidate for pair in samples.pairs]
    references = [pair.reference for pair in samples.pairs if pair.reference is not None]
    contexts = samples.target.contexts
    # Each context's energy is of the pairs that counted it there; of one there is no interval.
    by_context = [_counted(samples.pairs, index) for index in range(len(contexts))]
    energies = [counted if len(counted) > 1 else [] for counted in by_context]
    figures = tuple(
        Figures(context=context, **_intervals(candidates, energies[index], index))
        for index, context in enumerate(contexts)
    )
    profile = Profile(
        identity=samples.identity,
        figures=figures,
        flags=tuple(_flags(samples)),
        num_processes=len(candidates),
        num_repeated=len(samples.disturbed),
        num_energy_processes=min(map(len, filter(None, energies)), default=None),
        seconds=samples.seconds,
    )
    if not references:
        return profile
    ratios = {
        str(context): _ratios(candidates, references, energies[index], index)
        for index, context in enumerate(contexts)
    }
    tokens = samples.config.decode_tokens
    latency = ratio_interval(
        [_latency_ms(process, tokens) for process in candidates],
        [_latency_ms(process, tokens) for process in references],
    )
    memory = max(
        (
            ratio_interval(_net_bytes(candidates, index), _net_bytes(references, index))
            for index in range(len(contexts))
        ),
        key=lambda ratio: ratio.value,
    )
    return profile.model_copy(
        update={"ratios": ratios, "latency_ratio": latency, "memory_ratio": memory}
    )


def _values(processes: list[ProcessSamples], index: int, reading: Reading) -> list[float]:
    return [reading(process, process.contexts[index]) for process in processes]


def _intervals(
    processes: list[ProcessSamples], energies: list[_Energy], index: int
) -> dict[str, Interval]:
    found = {
        name: interval(_values(processes, index, reading)) for name, reading in FIGURES.items()
    }
    if energies:
        found["joules_per_token"] = interval([energy.candidate for energy in energies])
    return found


def _counted(pairs: tuple[PairSamples, ...], index: int) -> list[_Energy]:
    """Energy of a decode step at a context, of each pair in which it was counted.

    A counter that failed once leaves out the partner's process as well, so that candidate and
    reference are compared under the same conditions.
    """
    found = []
    for pair in pairs:
        other = pair.reference
        own = pair.candidate.contexts[index].joules_per_token
        beside = None if other is None else other.contexts[index].joules_per_token
        if own is not None and (other is None or beside is not None):
            found.append(_Energy(own, beside))
    return found


def _ratios(
    candidates: list[ProcessSamples],
    references: list[ProcessSamples],
    energies: list[_Energy],
    index: int,
) -> dict[str, Interval]:
    found = {
        name: ratio_interval(
            _values(candidates, index, reading), _values(references, index, reading)
        )
        for name, reading in FIGURES.items()
    }
    if energies:
        found["joules_per_token"] = interval(
            [each.candidate / each.reference for each in energies if each.reference is not None]
        )
    return found


def _energy_flags(samples: Samples) -> Iterator[str]:
    """Where some processes' energy was counted and others' was not."""
    num_pairs = len(samples.pairs)
    for index, context in enumerate(samples.target.contexts):
        count = len(_counted(samples.pairs, index))
        if 0 < count < num_pairs:
            what = "too few for a figure" if count < 2 else "and its figure is of those"
            yield f"energy at {context} was counted in {count} of {num_pairs} processes, {what}"


def _latency_ms(process: ProcessSamples, decode_tokens: int) -> float:
    """Request latency of one process, geometric mean over contexts."""
    return geometric_mean(
        [at.prefill_ms + decode_tokens * at.decode_quantile_ms(0.5) for at in process.contexts]
    )


def _net_bytes(processes: list[ProcessSamples], index: int) -> list[float]:
    """Of each process, the peak at a context less the empty engine's."""
    return [float(process.net_bytes(process.contexts[index])) for process in processes]


def _flags(samples: Samples) -> Iterator[str]:
    """What makes one doubt a figure, in plain words."""
    pairs = samples.pairs
    processes = [p for pair in pairs for p in (pair.candidate, pair.reference) if p is not None]
    at_contexts = [at for process in processes for at in process.contexts]
    composed = sorted({at.context for at in at_contexts if not at.ttft_ms})
    for context in composed:
        yield f"TTFT at {context} is composed from prefill passes, not from whole prefills"
    if any(at.finite is False for at in at_contexts):
        yield "some logits were not finite"
    if any(at.finite is None for at in at_contexts):
        yield "the engine showed no logits: that they are finite was seen at the export alone"
    if any(at.memory.swapped_bytes for at in at_contexts):
        yield "a process was partly swapped out"
    if not all(process.can_reset_peak for process in processes):
        yield "the peak could not be reset between contexts: it is that of all contexts so far"
    yield from _energy_flags(samples)
    yield from _battery_flags(pairs)
    yield from load_flags(pairs, spare_cores(samples.device, samples.identity.memory == "device"))


def spare_cores(device: DeviceInfo, on_card: bool) -> int:
    """Cores that other programs may keep busy without harm.

    A measurement that computes on a card needs one core, and one for whoever asks for it; one that
    computes on the processor shares caches and memory with whatever runs on any core.
    """
    return max(0, device.num_cores - 2) if on_card else 0


def load_flags(pairs: tuple[PairSamples, ...], spare: int = 0) -> Iterator[str]:
    """What the device had to do beside the measurement, in plain words.

    Args:
        pairs: at least one.
        spare: see `spare_cores`.
    """
    noisy = sum(not pair.was_ready for pair in pairs)
    if noisy and not spare:
        yield f"the device was not at rest before {noisy} of {len(pairs)} processes"
    busy, stolen = max(map(_other_cores, pairs)), max(map(_stolen_share, pairs))
    if busy > max(_BUSY_CORES, spare):
        yield f"other programs used up to {busy:.2f} cores during a process"
    if stolen > _STOLEN_SHARE * max(1, spare):
        yield f"the hypervisor withheld up to {stolen:.0%} of a core during a process"
    yield from _clock_flags(pairs)
    readings = _readings(pairs)
    governors = {r.governor for r in readings if r.governor is not None}
    if len(governors) > 1:
        yield f"the clock was governed in turn by {' and '.join(sorted(governors))}"
    hottest = max((r.temperature_c for r in readings if r.temperature_c is not None), default=0.0)
    if hottest > _HOT_C:
        yield f"the device reached {hottest:.0f} degrees Celsius"


def _clock_flags(pairs: tuple[PairSamples, ...]) -> Iterator[str]:
    """Whether the clock gave way; where the system tells what it allows, that and no more.

    A phone at rest clocks down, and before and after a measurement it is at rest.
    """
    readings = _readings(pairs)
    caps = [r.clock_cap_mhz for r in readings if r.clock_cap_mhz is not None]
    clocks = caps or [r.clock_mhz for r in readings if r.clock_mhz is not None]
    if clocks and min(clocks) < (1 - _CLOCK_SHARE) * max(clocks):
        what = "the cap of the clock" if caps else "the clock"
        yield f"{what} varied between {min(clocks):.0f} and {max(clocks):.0f} MHz"
    if severity := max((r.throttling or 0 for r in readings), default=0):
        yield f"the device slowed down for heat (severity {severity} of 6)"


def _battery_flags(pairs: tuple[PairSamples, ...]) -> Iterator[str]:
    """No disturbance that passes, so that nothing is measured again for it."""
    readings = _readings(pairs)
    if any(r.charging for r in readings):
        yield "the battery was being charged, which warms the device"
    charges = [r.battery_percent for r in readings if r.battery_percent is not None]
    if charges and min(charges) < _LOW_BATTERY_PERCENT:
        yield f"the battery fell to {min(charges):.0f}%, where a device may save power"


def _readings(pairs: tuple[PairSamples, ...]) -> list[Readings]:
    return [reading for pair in pairs for reading in (pair.before, pair.after)]


def _other_cores(pair: PairSamples) -> float:
    """Cores that programs other than the measured ones kept busy."""
    before, after = pair.before, pair.after
    if before.busy_s is None or after.busy_s is None:
        return 0.0
    others_s = after.busy_s - before.busy_s - pair.own_cpu_s
    return others_s / (after.time_s - before.time_s)


def _stolen_share(pair: PairSamples) -> float:
    before, after = pair.before, pair.after
    if before.steal_s is None or after.steal_s is None:
        return 0.0
    return (after.steal_s - before.steal_s) / (after.time_s - before.time_s)
