"""A deterministic stand-in for devices and trainings: results are functions of the spec alone."""

import hashlib
import math
import time
from pathlib import Path
from typing import Any

from archloop.evals.base import Score
from archloop.profiling.record import Figures, Identity, Interval, Profile
from archloop.profiling.statistics import t_quantile
from archloop.proxy.record import Rung, TrainJob
from archloop.search.evaluator import CandidateFailed
from archloop.search.recipe.recipe import Recipe, parse
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled

CONTEXTS = (64, 128)
IDENTITY = Identity(
    device="stand-in",
    runtime="stand-in",
    runtime_version="1",
    quant="fp32",
    precision="float32",
    threads=1,
    contexts=CONTEXTS,
)


def recipe(**changes: Any) -> Recipe:
    """A small recipe; keyword arguments replace its keys."""
    return parse(settings(**changes), "test.yaml")


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "seed": 4,
        "num_trials": 14,
        "reference": {"layout": ["short_conv", "gqa", "short_conv", "gqa"]},
        "initial": [["short_conv", "short_conv", "short_conv", "gqa"]],
        "space": {
            "ship": {"d_model": 128, "vocab_size": 512},
            "proxy": {"d_model": 64},
            "num_blocks": 4,
            "mixers": {"short_conv": {"kernel": [3, 5, 7]}, "gqa": {"head_dim": 32}},
            "channel_mixers": {"swiglu": {"expansion": [2.0, 3.0, 4.0]}},
            "scope": {"kernel": "block"},
        },
        "targets": {"here": {"contexts": list(CONTEXTS)}},
        "budgets": [{"metric": "decode_p50_ms", "limit": 1.02, "relative": True}],
        "proxy": {"rungs": [10, 20, 40], "training": {"schedule": "wsd"}},
        "strategy": {"settings": {"population": 4}},
        "promote_share": 0.5,
        "replicates": 0,
        **changes,
    }


def unit(*parts: object) -> float:
    """A number in [0, 1) that depends on the arguments alone."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class StandIn:
    """An `Evaluator` of formulas.

    Args:
        log: gets a line for each call.
        pause: seconds that each call takes.
        fails: digests of ship or proxy specs whose worker crashes.
    """

    def __init__(self, log: Path | None = None, pause: float = 0.0, fails: str = "") -> None:
        self.log, self.pause, self.fails = log, pause, fails
        self.calls: list[str] = []

    def prepare(self) -> dict[str, Any]:
        return {"corpus": "stand-in", "seed": 3}

    def profile(
        self, spec: StackSpec, reference: StackSpec, look: int, directory: Path
    ) -> Profiled:
        name = "profile" if look == 1 else f"profile-{look}"
        self._called(f"{name} {spec.digest}", directory.parent / f"{name}.json")
        share = spec.layout.count("gqa") / spec.num_blocks
        slow = 0.0 if spec == reference else 0.9 + 0.5 * (share - 0.5) + 0.1 * unit(spec.digest)
        slow = slow or 1.0
        # Processes differ by 8%, of which the t-interval over them follows.
        count = 2 * look
        half = t_quantile(0.975, count - 1) * 0.08 / math.sqrt(count)

        def around(value: float) -> Interval:
            low, high = value * math.exp(-half), value * math.exp(half)
            return Interval(value=value, low=low, high=high)

        ratios = {"ttft_ms": around(slow), "decode_p50_ms": around(slow)}
        figures = tuple(
            Figures(
                context=context,
                ttft_ms=around(slow * context),
                prefill_tok_per_s=around(1000 / slow),
                decode_p50_ms=around(slow),
                decode_p95_ms=around(1.2 * slow),
                peak_memory_bytes=around(2e6 * slow),
                engine_empty_bytes=around(1e6),
            )
            for context in CONTEXTS
        )
        profile = Profile(
            identity=IDENTITY,
            figures=figures,
            latency_ratio=around(slow),
            memory_ratio=around(0.5 + share),
            ratios={str(context): ratios for context in CONTEXTS},
            num_processes=count,
            seconds=1.0,
        )
        return Profiled(profiles={"here": profile})

    def train(self, job: TrainJob, directory: Path) -> Rung:
        self._called(f"{directory.name} {job.spec.digest}", directory.with_suffix(".json"))
        if job.checkpoint_to is not None:
            job.checkpoint_to.write_text(f"rung {job.rung}")
        share = job.spec.layout.count("gqa") / job.spec.num_blocks
        value = 0.3 + 0.3 * share * (1.4 - share) + 0.02 * unit(job.spec.digest, job.seed)
        value = 1 - (1 - value) / job.num_steps**0.2
        return Rung(
            index=job.rung,
            num_steps=job.num_steps,
            num_tokens=100 * job.num_steps,
            scores={
                "recall": _score(value, 0.1, "recall"),
                "noise": _score(0.25, 0.25, "noise"),
                "text": _score(value / 2, 0.0, "text"),
            },
            learning_rate=job.learning_rate or 1e-3,
            losses=((0, 5.0), (job.num_steps - 1, 5.0 - value)),
            diverged=False,
            train_s=2.0,
            eval_s=0.0,
        )

    def close(self) -> None:
        self.calls.append("close")

    def _called(self, what: str, stage_file: Path) -> None:
        # A replicate's stages are its own, though its spec is another trial's.
        what += f" in {stage_file.parent.name}"
        if stage_file.exists():
            what += " AGAIN"
        self.calls.append(what)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(what + "\n")
        time.sleep(self.pause)
        if self.fails and self.fails in what:
            raise CandidateFailed("worker: exit status 1:\n the engine crashed")


def _score(value: float, chance: float, category: str) -> Score:
    return Score(
        value=value,
        standard_error=0.01,
        chance=chance,
        perfect=1.0,
        num_examples=100,
        category=category,
    )


def no_time() -> float:
    """A clock that stands still, so that records of equal studies are equal."""
    return 0.0
