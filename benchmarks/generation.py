"""What text generation adds to a captured decode step: python benchmarks/generation.py

Milliseconds a token of `archloop generate --device cuda`, a preset of random weights, greedily,
from a reply's first word to its last (its own loop, in this process, output dropped), beside the
decode step that `archloop profile` times and the captured step alone, which the host never waits
for, at the same depths. In turns; the least and the median of the turns.
"""

import argparse
import json
import time
from statistics import median

import tokenizers
import torch
from tokenizers import models

from archloop.generation.model import Model, stream
from archloop.runtimes.cuda.model import CudaModel
from archloop.runtimes.torch_cuda import CudaSession
from gpu_models import random_decoder, random_ids

PROMPT = 512


def words(vocab_size: int) -> tokenizers.Tokenizer:
    """A word for each token."""
    known = {f"w{index}": index for index in range(vocab_size)}
    return tokenizers.Tokenizer(models.WordLevel(known, unk_token="w0"))


def generated_ms(model: Model, engine: CudaModel, ids: list[int], count: int) -> float:
    """A token, through all that a user's command runs."""
    with torch.inference_mode():
        pieces = stream(model, ids, max_new_tokens=count, engine=engine)
        next(pieces)
        began = time.perf_counter()
        for _ in pieces:
            pass
        return 1e3 * (time.perf_counter() - began) / (count - 1)


def profiled_ms(engine: CudaModel, ids: list[int], count: int) -> float:
    """A token of the step that a profile times: the host has the one before it begins the next."""
    with torch.inference_mode():
        session = CudaSession(engine.decoder, PROMPT + count)
        token = session.decode_step(session.prefill(session.prepare(ids)))
        began = time.perf_counter()
        for _ in range(count - 2):
            token = session.decode_step(token)
        return 1e3 * (time.perf_counter() - began) / (count - 2)


def captured_ms(engine: CudaModel, ids: list[int], count: int) -> float:
    """A token of the captured step."""
    with torch.inference_mode():
        state = engine.init_state(1, PROMPT + count)
        engine.prefill(torch.tensor([ids], device="cuda"), state)
        graph = engine.fused.capture(state)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count - 1):
            graph.step()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began) / (count - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lfm2-1.2b")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    decoder = random_decoder(asked.preset)
    engine = CudaModel(decoder)
    model = Model(decoder, words(decoder.vocab_size))
    ids = random_ids(decoder, 1, PROMPT)[0].tolist()
    times: dict[str, list[float]] = {"generate": [], "profiled step": [], "captured step": []}
    generated_ms(model, engine, ids, 32)  # compiles kernels
    for _ in range(asked.turns):
        times["generate"].append(generated_ms(model, engine, ids, asked.tokens))
        times["profiled step"].append(profiled_ms(engine, ids, asked.tokens))
        times["captured step"].append(captured_ms(engine, ids, asked.tokens))
    for name, each in times.items():
        print(f"{name:14} {min(each):.3f} ms a token at least, median {median(each):.3f}")
    print(json.dumps({"benchmark": "generation", "preset": asked.preset, "ms": times}))


if __name__ == "__main__":
    main()
