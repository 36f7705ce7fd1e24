"""Inference of two commits on one card, in turns: python benchmarks/inference_between.py TREE

TREE is a checkout of another commit (git worktree add TREE COMMIT). Each turn is a process of its
own that runs `benchmarks/inference.py`'s own figures with that tree's code, without checks and
peers; the 1.2B is measured in three turns each, so that a difference stands beside what two turns
of one tree differ by. Then `archloop generate --device cuda` of this tree on a checkpoint of the
same size, with the milliseconds from a reply's first word to its last, over the words;
without TREE that alone. Prints a table and one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
TURNS = {"lfm2-1.2b": 3, "lfm2-24b-a2b": 1}
FIGURES = """
import json, sys
sys.path.insert(0, sys.argv[1] + "/benchmarks")
import inference
decoder = inference.random_decoder(sys.argv[2])
fused = inference.FusedDecoder(decoder)
inference.balance(fused)
print("FOUND", json.dumps(inference.measure_ours(fused, bool(fused.moes))))
"""
CHECKPOINT = """
import sys
sys.path.insert(0, sys.argv[1] + "/benchmarks")
import tokenizers
from gpu_models import random_decoder
from archloop import checkpoints
decoder = random_decoder(sys.argv[2])
checkpoints.save(decoder, sys.argv[3])
words = {f"w{index}": index for index in range(decoder.spec.vocab_size)}
model = tokenizers.models.WordLevel(words, unk_token="w0")
tokenizer = tokenizers.Tokenizer(model)
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
tokenizer.save(sys.argv[3] + "/tokenizer.json")
"""
WORDS = 1024
PROMPT = " ".join(f"w{7 * index + 3}" for index in range(512))


def environment(tree: Path) -> dict[str, str]:
    """That of a process with a tree's package."""
    paths = [str(tree / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def python(tree: Path, *arguments: str) -> str:
    """What Python prints with a tree's package."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment(tree), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tree}: {done.stderr[-2000:]}")
    return done.stdout


def figures(tree: Path, model: str) -> dict[str, float]:
    lines = python(tree, "-c", FIGURES, str(tree), model).splitlines()
    found: dict[str, float] = json.loads(
        next(line for line in lines if line.startswith("FOUND")).removeprefix("FOUND")
    )
    return found


def generated_ms(model: str) -> list[float]:
    """Milliseconds a token of `archloop generate`, of three replies."""
    with tempfile.TemporaryDirectory() as folder:
        python(HERE, "-c", CHECKPOINT, str(HERE), model, folder)

        return [reply_ms(folder) for _ in range(3)]


def reply_ms(checkpoint: str) -> float:
    """Milliseconds from word to word, as they come out of the command."""
    command = [
        sys.executable, "-m", "archloop", "generate", checkpoint, "--prompt", PROMPT,
        "--device", "cuda", "--temperature", "0", "--max-new-tokens", str(WORDS),
    ]  # fmt: skip
    pieces = []
    with subprocess.Popen(command, env=environment(HERE), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            pieces.append((time.perf_counter(), piece))
    later = b"".join(piece for _, piece in pieces[1:])
    return 1e3 * (pieces[-1][0] - pieces[0][0]) / len(later.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, nargs="?")
    parser.add_argument("--models", nargs="+", default=list(TURNS))
    args = parser.parse_args()
    found = {} if args.tree is None else compared(args.tree.resolve(), args.models)
    generated = {model: generated_ms(model) for model in args.models if model == "lfm2-1.2b"}
    print(f"archloop generate --device cuda, ms a token: {generated}")
    print(json.dumps({"benchmark": "inference_between", "turns": found, "generate_ms": generated}))


def compared(there: Path, models: list[str]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Figures of both trees by model and turn; prints their medians and ranges."""
    trees = {"there": there, "here": HERE}
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for model in models:
        turns = found[model] = {name: [] for name in trees}
        for _ in range(TURNS[model]):
            for name, tree in trees.items():
                turns[name].append(figures(tree, model))
        print(f"\n{model:30} {'there':>24} {'here':>24}  here over there", flush=True)
        for key in turns["here"][0]:
            each = {name: sorted(turn[key] for turn in turns[name]) for name in trees}
            middle = {name: statistics.median(values) for name, values in each.items()}
            cells = [f"{middle[n]:9.4g} ({v[0]:.4g} to {v[-1]:.4g})" for n, v in each.items()]
            ratio = middle["here"] / middle["there"]
            print(f"{key:30} {cells[0]:>24} {cells[1]:>24}  {ratio:.3f}", flush=True)
    return found


if __name__ == "__main__":
    main()
