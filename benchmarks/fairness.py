"""How far each mixer's fast path is from the floor of the card: python benchmarks/fairness.py

A family that loses a search because its kernel is slow has not lost. For each sequence mixer at
width 1,024, alone in its blocks, this measures prefill and decode at batch 1 as `torch_cuda` runs
them, and prints the time of a block over its floor: the larger of the bytes that cannot be avoided
(weights once, the stream in and out, state read and what is new of it written) at the bandwidth
measured first, and the FLOPs at the matrix rate measured first. The time of a block is the
difference of two depths, so embedding, head and what is paid once a call drop out; weights of the
deep stack are more than the card's cache holds. Both are given as the engine runs them, which
captures prompts by length and compiles the steps of mixers that have no kernels of their own, and
as they are written: where a prompt as written takes far longer, Python launches too slowly. The
floors of decode are 2 to 4 us, in which a card starts one or two kernels. The line of JSON, as a
file in `archloop/findings/cards`, is what reports of studies on such a card show.

    --mixers a,b     default: all but the exact CfC, which runs token by token
    --lengths a,b    default: 4096,32768
    --warm           compile every kernel first, mixers side by side
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch

from archloop import registry
from archloop.runtimes.cuda.fused import FusedDecoder
from archloop.runtimes.cuda.prompts import PromptGraphs
from archloop.stack import cost
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, MixerSpec, StackSpec
from gpu_models import random_ids, restart
from inference import ceilings, median_ms, times_ms

WIDTH = 1024
SHALLOW, DEEP = 4, 20
SETTINGS = {
    "gqa": {"head_dim": 64, "queries_per_kv": 2},
    "swa": {"head_dim": 64, "queries_per_kv": 2, "window": 256},
}
"""As the recipe of the search on this card has them."""
LIMIT = 3.0
"""Times its floor that a family may take and still be compared by what it is."""


def stack_of(name: str, depth: int) -> Decoder:
    """A stack of one mixer and nothing else."""
    torch.manual_seed(0)
    block = BlockSpec(mixers=(MixerSpec(name=name, config=SETTINGS.get(name, {})),))
    spec = StackSpec(d_model=WIDTH, vocab_size=1024, blocks=(block,) * depth)
    with torch.device("cuda"):
        return Decoder(spec).to(torch.bfloat16)


def measure(name: str, depth: int, length: int, *, timed: bool = True) -> dict[str, float]:
    """Milliseconds of prefill and of a decode step behind it."""
    decoder = stack_of(name, depth)
    engine, written = FusedDecoder(decoder), FusedDecoder(decoder, compiles=False)
    ids = random_ids(decoder, 1, length)
    state = engine.init_state(1, length + 192)

    found = {}
    graphs = PromptGraphs(engine, state)
    prefills = {
        "prefill": graphs.prefill,
        "prefill as written": lambda ids: engine.prefill(ids, state),
    }
    for key, prefill in prefills.items():

        def fresh(prefill=prefill) -> None:
            restart(state)
            prefill(ids)

        fresh()
        if timed:
            found[key] = median_ms(fresh, 7, 2)
    for key, each in (("decode", engine), ("decode as written", written)):
        graph = each.capture(state)
        graph.ids_B.copy_(ids[:, 0])
        if timed:
            times = times_ms(graph.step, 48, 8)
            found[key] = times[len(times) // 2]
    return found


def floors(name: str, length: int, read: float, matmul: float) -> dict[str, float]:
    """Milliseconds that a block of one mixer cannot do without."""
    config = cost.mixer_config(MixerSpec(name=name, config=SETTINGS.get(name, {})))
    weights = 2 * config.num_params(WIDTH)
    held = config.state_bytes(WIDTH, length, torch.bfloat16)
    stream = 2 * 2 * length * WIDTH
    flops = config.prefill_flops(WIDTH, length, 0)
    # A cache is read and one slot of it written; what does not grow is read and written whole.
    grows = held - config.state_bytes(WIDTH, length // 2, torch.bfloat16) > 0
    decode = weights + held * (1 if grows else 2)
    return {
        "prefill": 1e3 * max((weights + stream + held) / read, flops / matmul),
        "decode": 1e3 * decode / read,
    }


def row(name: str, length: int, read: float, matmul: float) -> dict[str, float]:
    shallow, deep = (measure(name, depth, length) for depth in (SHALLOW, DEEP))
    blocks = DEEP - SHALLOW
    each = {key: (deep[key] - shallow[key]) / blocks for key in deep}
    floor = floors(name, length, read, matmul)
    found = {f"{key} ms": value for key, value in each.items()}
    found |= {f"{key} floor ms": value for key, value in floor.items()}
    for key in ("prefill", "decode"):
        for written in (key, f"{key} as written"):
            found[f"{written} over floor"] = each[written] / floor[key]
    return found


def warm(names: list[str], lengths: list[int]) -> None:
    """Compile what will be launched, a process a mixer."""
    # Else each starts as many compilers as the machine has cores.
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    listed = ",".join(map(str, lengths))
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--compile", name, "--lengths", listed], env=environment
        )
        for name in names
    ]
    for name, process in zip(names, processes, strict=True):
        if process.wait():
            print(f"{name}: compiling ended with {process.returncode}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixers")
    parser.add_argument("--lengths", default="4096,32768")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    args = parser.parse_args()
    lengths = [int(length) for length in args.lengths.split(",")]
    names = [name for name in registry.shipped("mixers") if name != "cfc"]
    names = args.mixers.split(",") if args.mixers else names
    if args.compile:
        for length in lengths:
            measure(args.compile, 2, length, timed=False)
        return
    if args.warm:
        warm(names, lengths)
    read, matmul = ceilings()
    device = torch.cuda.get_device_name()
    print(
        f"{device}, torch {torch.__version__}: {read / 1e12:.2f} TB/s, {matmul / 1e12:.0f} TFLOP/s"
    )
    print(
        "block of one mixer      T   prefill ms  over floor  as written"
        "   decode us  over floor  as written"
    )
    rows: dict[str, dict[int, dict]] = {}
    for name in names:
        for length in lengths:
            try:
                found = row(name, length, read, matmul)
            except Exception as error:  # the table goes on without it, and says why
                found = {"error": f"{type(error).__name__}: {error}"[:300]}
            rows.setdefault(name, {})[length] = found
            show(name, length, found)
            torch.cuda.empty_cache()
    within = [
        name
        for name, each in rows.items()
        if all(
            r.get("prefill over floor", LIMIT + 1) <= LIMIT
            and r.get("decode over floor", LIMIT + 1) <= LIMIT
            for r in each.values()
        )
    ]
    print(f"within {LIMIT:g} times the floor throughout: {', '.join(within) or 'none'}")
    record = {"benchmark": "fairness", "device": device, "runtime": "torch_cuda", "quant": "bf16"}
    record |= {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "width": WIDTH}
    record |= {"read_tb_per_s": read / 1e12, "matmul_tflop_per_s": matmul / 1e12, "rows": rows}
    print(json.dumps(record))


def show(name: str, length: int, found: dict) -> None:
    if "error" in found:
        print(f"{name:18} {length:6}  {found['error']}", flush=True)
        return
    print(
        f"{name:18} {length:6}  {found['prefill ms']:9.3f}"
        f"  {found['prefill over floor']:8.1f}  {found['prefill as written over floor']:10.1f}"
        f"  {1e3 * found['decode ms']:9.1f}  {found['decode over floor']:9.1f}"
        f"  {found['decode as written over floor']:9.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
