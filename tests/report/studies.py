"""A finished study as records, with everything that a report can show."""

import numpy as np

from archloop.evals.base import Score
from archloop.profiling.record import Figures, Identity, Interval, Profile
from archloop.proxy.record import Rung
from archloop.ranking.anchors import Anchor, Scale
from archloop.ranking.record import BrokenBudget, Objectives, Readings
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.store.record import (
    Costs,
    StudyRecord,
    TrialRecord,
)


def spec(pattern: str) -> StackSpec:
    mixers = {
        "C": MixerSpec(name="short_conv", config={"kernel": 3}),
        "A": MixerSpec(name="gqa"),
        "S": MixerSpec(name="gqa", state_from=1),
        "W": MixerSpec(name="short_conv", config={"kernel": 3}, weights_from=0),
    }
    channel = ChannelMixerSpec(name="swiglu", config={"expansion": 3.0})
    blocks = tuple(BlockSpec(mixers=(mixers[k],), channel_mixer=channel) for k in pattern)
    return StackSpec(d_model=128, vocab_size=512, blocks=blocks)


def interval(value: float) -> Interval:
    return Interval(value=value, low=0.97 * value, high=1.04 * value)


def profile(scale: float) -> Profile:
    identity = Identity(
        device="host",
        runtime="torch_eager",
        runtime_version="2.13.0",
        quant="fp32",
        precision="fp32",
        threads=2,
        contexts=(256, 1024),
    )
    figures = tuple(
        Figures(
            context=context,
            ttft_ms=interval(0.1 * context * scale),
            prefill_tok_per_s=interval(10_000 / scale),
            decode_p50_ms=interval(4 * scale),
            decode_p95_ms=interval(5 * scale),
            peak_memory_bytes=interval(3e8 * scale),
            engine_empty_bytes=interval(2e8),
        )
        for context in (256, 1024)
    )
    return Profile(
        identity=identity,
        figures=figures,
        latency_ratio=interval(scale),
        memory_ratio=interval(scale),
        flags=("load average 3.1 on 2 cores",) if scale > 1.2 else (),
        num_processes=3,
        seconds=9.5,
    )


def objectives(quality: float, latency: float, memory: float) -> Objectives:
    return Objectives(
        values={
            "quality": Readings(mean=quality),
            "latency": Readings(mean=latency, sd=0.02, n=4),
            "memory": Readings(mean=memory, sd=0.005, n=4),
        }
    )


def rung(index: int) -> Rung:
    score = Score(
        value=3.0, standard_error=0.02, chance=8.0, perfect=0.0, num_examples=400, category="text"
    )
    recall = Score(
        value=0.4, standard_error=0.02, chance=0.1, perfect=1.0, num_examples=200, category="recall"
    )
    return Rung(
        index=index,
        num_steps=200 * (index + 1),
        num_tokens=10**6,
        scores={"text": score, "in_context_recall": recall},
        learning_rate=3e-3,
        losses=tuple((step, 6.0 / (1 + step / 50)) for step in range(0, 200, 20)),
        diverged=False,
        train_s=11.0,
        eval_s=0.8,
    )


def scale(*names: str) -> Scale:
    """Scores between short convolutions alone and the reference preset."""
    known = {
        "text": Anchor(
            lacks="all short_conv",
            has="reference",
            low=3.6,
            high=3.0,
            standard_error=0.03,
            category="text",
        ),
        "in_context_recall": Anchor(
            lacks="all short_conv",
            has="reference",
            low=0.15,
            high=0.4,
            standard_error=0.02,
            category="recall",
        ),
    }
    anchors = {name: known[name] for name in names}
    return Scale(anchors=anchors, spreads={each.category: 0.5 for each in anchors.values()})


def of_reference() -> Objectives:
    one = Readings(mean=1.0, n=0)
    quality = Readings(mean=0.5, sd=0.01, n=3)
    return Objectives(values={"quality": quality, "latency": one, "memory": one})


def trial(
    number: int, pattern: str, state: str = "complete", scale: float = 1.0, **more: object
) -> TrialRecord:
    fields = {
        "number": number,
        "state": state,
        "origin": "random",
        "genome": {},
        "spec": spec(pattern),
        "proxy_spec": spec(pattern),
        "costs": Costs(
            num_params=12_000_000,
            num_active_params=12_000_000,
            state_bytes={"256": 1_000_000},
            decode_flops={"256": 24_000_000},
        ),
        "profiles": {"host": profile(scale)},
        "seconds": {"profile": 9.0, "train": 11.0},
        **more,
    }
    return TrialRecord.model_validate(fields)


def study() -> StudyRecord:
    broken = BrokenBudget(
        metric="decode_p50_ms",
        context=1024,
        target="host",
        relative=True,
        limit=1.3,
        value=1.5,
        low=1.41,
    )
    trials = (
        trial(
            0,
            "CACA",
            rungs=(rung(0), rung(1)),
            by_rung=(objectives(0.55, 0.95, 0.9), objectives(0.6, 0.95, 0.9)),
            hypervolume_gain=0.2,
        ),
        trial(
            1,
            "CCCC",
            rungs=(rung(0),),
            by_rung=(objectives(0.40, 0.70, 0.6),),
            hypervolume_gain=0.1,
        ),
        trial(2, "AAAA", state="rejected", scale=1.4, broken=(broken,)),
        trial(
            3,
            "CCWA",
            rungs=(rung(0),),
            by_rung=(objectives(0.30, 0.80, 0.7),),
            origin="mutation",
            parents=(1,),
        ),
        trial(4, "CASC", state="failed", error="out of memory while training <killed>"),
        trial(
            5,
            "CASC",
            rungs=(rung(0),),
            by_rung=(objectives(0.52, 0.85, 0.65),),
            origin="crossover",
            parents=(0, 1),
        ),
    )
    return StudyRecord(
        name="example",
        recipe={"name": "example", "seed": 0},
        environment={"python": "3.11", "device": "test", "numpy": np.__version__},
        reference=trial(-1, "CCAC", rungs=(rung(0),), by_rung=(of_reference(),), origin="preset"),
        reference_point=Objectives(
            values={
                "quality": Readings(mean=0.0, n=0),
                "latency": Readings(mean=1.5, n=0),
                "memory": Readings(mean=1.5, n=0),
            }
        ),
        scale=scale("text", "in_context_recall"),
        anchors={"all short_conv": rung(0).scores, "all gqa": rung(0).scores},
        dropped={"memorization": "1.2 standard errors above chance"},
        noise=({"quality": Readings(mean=0.5, sd=0.01, n=9)},),
        trials=trials,
        seconds_by_phase={
            "setup": 3.0,
            "profile": 60.0,
            "train": 75.5,
            "evaluate": 4.0,
            "search": 0.4,
        },
        overhead=0.004,
    )
