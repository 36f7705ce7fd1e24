"""A long prompt composed from passes at several depths, against the prompt taken in whole.

    PYTHONPATH=src python benchmarks/composed_prefill.py --runtime onnx_runtime --context 8192

Each round is one fresh process that does both, the first of them alternating, exactly as a study
times either. The ratio is composed over whole, one number a round; rounds go on until the
half-width of its 95% interval is at most 5%, or for `--most`. Prints a table and a JSON line.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from archloop import registry
from archloop.profiling.statistics import interval
from archloop.profiling.turns import Subject, start, wait_started
from archloop.workers import wire
from own_tools import artifact, read_spec, runner

WIDEST = 0.05


def main() -> None:
    asked = _arguments()
    runtime = registry.get("runtimes", asked.runtime)()
    quant = asked.quant or runtime.quants[0]
    composed: list[float] = []
    whole: list[float] = []
    with artifact(asked, quant) as folder:
        while len(whole) < asked.most:
            first = len(whole) % 2 == 0
            one, other = measured(asked, folder, composed_first=first)
            composed.append(one)
            whole.append(other)
            print(f"round {len(whole)}: {one:.1f} ms composed, {other:.1f} whole", file=sys.stderr)
            if len(whole) >= 3:
                ratio = interval([a / b for a, b in zip(composed, whole, strict=True)])
                if (ratio.high - ratio.low) / 2 <= WIDEST:
                    break
    if not whole:
        return
    ratio = interval([a / b for a, b in zip(composed, whole, strict=True)])
    name = f"{asked.runtime} {quant}, {asked.preset}, {asked.context}"
    print("| | composed, ms | whole, ms | ratio | 95% | rounds |\n|---|---|---|---|---|---|")
    print(
        f"| {name} | {median(composed):.1f} | {median(whole):.1f} | {ratio.value:.3f} "
        f"| {ratio.low:.3f} to {ratio.high:.3f} | {len(whole)} |"
    )
    told = {"composed_ms": composed, "whole_ms": whole, **ratio.model_dump()}
    print(json.dumps({"composed_prefill": told, "of": name}))


def measured(
    asked: argparse.Namespace, folder: Path, *, composed_first: bool
) -> tuple[float, float]:
    """Milliseconds of the prompt composed from passes, and taken in whole."""
    with runner(asked.runtime, asked.threads, folder.parent) as worker:
        subject = Subject(worker, read_spec(asked.preset).vocab_size, seed=0)
        start([subject], asked.threads)
        wait_started([subject])
        worker.send(wire.Open(directory=str(folder), max_context=asked.context))
        subject.begin(asked.context)
        if asked.context <= subject.prefill_pass_tokens:
            raise SystemExit(f"{asked.runtime} takes {asked.context} tokens in one pass")
        subject.pass_ms(0)
        for is_composed in (True, False) if composed_first else (False, True):
            if is_composed:
                for depth in subject.depths:
                    subject.prefill_pass_ms.append((depth, subject.pass_ms(depth)))
            else:
                whole_ms = subject.prefill(asked.context)
        subject.end()
        # Without whole prefills a context's samples compose the time from their passes.
        return subject.samples().contexts[0].prefill_ms, whole_ms


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", default="onnx_runtime")
    parser.add_argument("--quant")
    parser.add_argument("--preset", default="smollm2-135m", help="or the .json file of a spec")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=5, help="rounds; 0 only exports")
    parser.add_argument("--keep", type=Path, help="folder that keeps the artifact")
    return parser.parse_args()


if __name__ == "__main__":
    main()
