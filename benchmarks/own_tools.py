"""Decode and prefill through archloop and through an engine's own benchmark, in turns.

    PYTHONPATH=src python benchmarks/own_tools.py llama_cpp --tool build/bin/llama-bench
    PYTHONPATH=src python benchmarks/own_tools.py openvino

Each round is a fresh process of either, the first of them alternating: archloop's runner as a study
starts it, and ``llama-bench`` or OpenVINO's ``benchmark_app``. A ratio is one number a round;
rounds go on until the half-width of its 95% interval is at most 5% everywhere, or for `--most`.
ONNX Runtime's `onnxruntime_perf_test` is in no package: build it, there is nothing to compare with
here. Prints a table and a JSON line.

llama.cpp is compared at depths 0 and `--depth`, and a prompt of 512 tokens at depth 0. Its
tool chooses no token, archloop's session takes the most likely one as a user would. OpenVINO's tool
gives one step again and again at depth 0, on the same model with state, room for `--depth` tokens.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from archloop import load_preset, registry
from archloop.devices.choice import DeviceChoice
from archloop.profiling.record import Interval
from archloop.profiling.statistics import ratio_interval
from archloop.profiling.turns import Subject, start, wait_started
from archloop.runtimes.exporting import build_random, export
from archloop.stack.spec import StackSpec
from archloop.workers import wire
from archloop.workers.process import WorkerProcess

PROMPT, STEPS, SETTLE = 512, 64, 8
WIDEST = 0.05
"""Half-width of an interval at which rounds end."""

Figures = dict[str, float]
"""Milliseconds a token, by what was done."""


def main() -> None:
    asked = _arguments()
    quant = asked.quant or ("q4_0" if asked.runtime == "llama_cpp" else "fp32")
    with artifact(asked, quant) as folder:
        if asked.most == 0:
            return
        tool = {"llama_cpp": llama_bench, "openvino": benchmark_app}[asked.runtime]
        ways: list[Callable[[argparse.Namespace, Path], Figures]] = [archloops, tool]
        found: list[list[Figures]] = [[], []]
        while len(found[0]) < asked.most and not _is_narrow(found):
            for index in (0, 1) if len(found[0]) % 2 == 0 else (1, 0):
                found[index].append(ways[index](asked, folder))
            print(f"round {len(found[0])}: {found[0][-1]} {found[1][-1]}", file=sys.stderr)
    _print(asked, quant, found)


@contextmanager
def artifact(asked: argparse.Namespace, quant: str) -> Iterator[Path]:
    """A preset's artifact with random weights, in the folder that keeps them if there is one."""
    runtime = registry.get("runtimes", asked.runtime)()
    with tempfile.TemporaryDirectory() as scratch:
        home = asked.keep or Path(scratch)
        folder = home / f"{asked.runtime}-{quant}-{Path(asked.preset).stem}"
        if not folder.exists():
            decoder = build_random(read_spec(asked.preset), 0)
            export(runtime, decoder, folder, quant, parity=False)
        yield folder


def archloops(asked: argparse.Namespace, folder: Path) -> Figures:
    """As a study measures: a runner of its own, spoken to over the wire."""
    with runner(asked.runtime, asked.threads, folder.parent) as worker:
        subject = Subject(worker, read_spec(asked.preset).vocab_size, seed=0)
        start([subject], asked.threads)
        wait_started([subject])
        room = asked.depth + STEPS + SETTLE
        worker.send(wire.Open(directory=str(folder), max_context=max(room, PROMPT)))
        subject.begin(asked.depth)
        figures = {}
        if asked.runtime == "llama_cpp":
            subject.prefill(PROMPT)
            figures[f"prompt of {PROMPT}"] = subject.prefill(PROMPT) / PROMPT
        for depth in (0, asked.depth) if asked.runtime == "llama_cpp" else (0,):
            worker.ask(wire.Fill(num_tokens=depth, seed=0))
            subject.decode(SETTLE, STEPS)
            # The tools give means, or medians.
            times = subject.decode_ms[-1]
            mean = sum(times) / len(times)
            figures[f"step at {depth}"] = mean if asked.runtime == "llama_cpp" else median(times)
        return figures


@contextmanager
def runner(runtime: str, threads: int, scratch: Path) -> Iterator[WorkerProcess]:
    """A runner on this machine that has said hello."""
    device = DeviceChoice().open()
    argv = registry.get("runtimes", runtime)().runner(device).argv
    worker = WorkerProcess(
        device, argv, scratch / "log", threads=threads, time_limit_s=600.0, role="candidate"
    )
    try:
        worker.hello(runtime=runtime)
        yield worker
    finally:
        worker.kill()


def llama_bench(asked: argparse.Namespace, folder: Path) -> Figures:
    common = ["-m", str(folder / "model.gguf"), "-t", str(asked.threads), "-r", "1", "-o", "json"]
    depths = ["-p", "0", "-n", str(STEPS), "-d", f"0,{asked.depth}"]
    steps = json.loads(_output([asked.tool, *common, *depths]))
    prompt = json.loads(_output([asked.tool, *common, "-p", str(PROMPT), "-n", "0"]))
    figures = {f"prompt of {PROMPT}": prompt[0]["avg_ns"] / 1e6 / PROMPT}
    return figures | {f"step at {row['n_depth']}": row["avg_ns"] / 1e6 / STEPS for row in steps}


def benchmark_app(asked: argparse.Namespace, folder: Path) -> Figures:
    import openvino

    from archloop.runtimes.openvino import stateful

    model = folder.with_suffix(".stateful.xml")
    if not model.exists():
        room = asked.depth + STEPS + SETTLE
        openvino.save_model(stateful(folder, room), str(model), compress_to_fp16=False)
    tool = [sys.executable, "-c", "from openvino.tools.benchmark.main import main; main()"]
    options = ["-m", str(model), "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nireq", "1"]
    options += ["-nthreads", str(asked.threads), "-infer_precision", "f32", "-api", "sync"]
    # Data of this shape to a model that takes any number of tokens, as a session gives it: compiled
    # for one token alone, it is another and faster graph.
    options += ["-data_shape", "ids[1,1],length[1]", "-niter", str(STEPS)]
    told = _output([*tool, *options])
    (line,) = [line for line in told.splitlines() if "Median" in line]
    *_, value, unit = line.split()
    return {"step at 0": float(value) * {"ms": 1.0, "us": 1e-3}[unit]}


def read_spec(name: str) -> StackSpec:
    """A preset, or the spec of a .json file."""
    file = Path(name)
    return StackSpec.from_json(file.read_text()) if file.is_file() else load_preset(name)


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def _is_narrow(found: list[list[Figures]]) -> bool:
    if len(found[0]) < 3:
        return False
    ratios = (_ratio(found, name) for name in found[0][0])
    return all((ratio.high - ratio.low) / 2 <= WIDEST for ratio in ratios)


def _ratio(found: list[list[Figures]], name: str) -> Interval:
    ours, theirs = ([figures[name] for figures in each] for each in found)
    return ratio_interval(ours, theirs)


def _print(asked: argparse.Namespace, quant: str, found: list[list[Figures]]) -> None:
    rows = {}
    print("| | archloop, ms a token | own tool | ratio | 95% |\n|---|---|---|---|---|")
    for name in found[0][0]:
        ours, theirs = (median(figures[name] for figures in each) for each in found)
        ratio = _ratio(found, name)
        rows[name] = {"ours_ms": ours, "theirs_ms": theirs, **ratio.model_dump()}
        print(
            f"| {name} | {ours:.3f} | {theirs:.3f} | {ratio.value:.3f} "
            f"| {ratio.low:.3f} to {ratio.high:.3f} |"
        )
    about = {"runtime": asked.runtime, "quant": quant, "preset": asked.preset}
    print(json.dumps({"own_tools": rows, "rounds": len(found[0]), **about, "all": found}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runtime", choices=("llama_cpp", "openvino"))
    parser.add_argument("--tool", default="llama-bench", help="llama.cpp's benchmark program")
    parser.add_argument("--preset", default="lfm2-350m", help="or the .json file of a spec")
    parser.add_argument("--quant")
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=7, help="rounds; 0 only exports")
    parser.add_argument("--keep", type=Path, help="folder that keeps the artifact")
    return parser.parse_args()


if __name__ == "__main__":
    main()
