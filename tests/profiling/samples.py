"""Samples made by hand, whose figures are known."""

from archloop.devices.base import DeviceInfo, Readings
from archloop.profiling.config import ProfileConfig
from archloop.profiling.record import Identity
from archloop.profiling.samples import (
    ContextSamples,
    Memory,
    PairSamples,
    ProcessSamples,
    Samples,
)
from archloop.profiling.target import Target
from archloop.stack.spec import BlockSpec, StackSpec

SPEC = StackSpec(d_model=64, vocab_size=16, blocks=(BlockSpec(),))
CONTEXTS = (100, 200)


def memory(peak: int, swapped: int = 0) -> Memory:
    return Memory(
        peak_bytes=peak,
        resident_bytes=peak,
        anonymous_bytes=peak,
        file_bytes=0,
        swapped_bytes=swapped,
    )


def process(scale: float, peaks: tuple[int, ...] = (300, 400), empty: int = 100) -> ProcessSamples:
    """TTFT 10 ms and 20 ms, decode 1 ms and 2 ms, times `scale`."""
    contexts = tuple(
        ContextSamples(
            context=context,
            open_s=0.1,
            state_bytes=1,
            ttft_ms=(10 * scale * factor,) * 2,
            prefill_pass_ms=(),
            prefill_pass_tokens=512,
            decode_ms=((scale * factor,) * 3, (scale * factor,) * 2),
            memory=memory(peak),
            finite=True,
        )
        for factor, (context, peak) in enumerate(zip(CONTEXTS, peaks, strict=True), start=1)
    )
    return ProcessSamples(engine_empty=memory(empty), can_reset_peak=True, contexts=contexts)


def pair(
    candidate: ProcessSamples, reference: ProcessSamples | None = None, busy_s: float = 10.0
) -> PairSamples:
    """Ten seconds, in which these processes used ten seconds of processor time."""
    return PairSamples(
        candidate=candidate,
        reference=reference,
        before=Readings(time_s=0.0, busy_s=0.0, steal_s=0.0),
        after=Readings(time_s=10.0, busy_s=busy_s, steal_s=0.0),
        own_cpu_s=10.0,
        was_ready=True,
    )


def samples(*pairs: PairSamples, contexts: tuple[int, ...] = CONTEXTS) -> Samples:
    return Samples(
        spec=SPEC,
        reference=SPEC if pairs[0].reference else None,
        target=Target(contexts=contexts),
        config=ProfileConfig(processes=max(2, len(pairs))),
        identity=Identity(
            device="test, 2 cores",
            runtime="torch_eager",
            runtime_version="0",
            quant="fp32",
            precision="float32",
            threads=1,
            contexts=contexts,
        ),
        device=DeviceInfo(processor="test", num_cores=2, os="none"),
        pairs=pairs,
        looks=1,
        seconds=20.0,
    )
