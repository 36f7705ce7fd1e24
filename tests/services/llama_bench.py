"""In place of llama.cpp's ``llama-bench``: its options, refusing others, and the JSON it prints.

It holds the model file in memory as the engine would, and takes a moment for each token.
"""

import argparse
import json
import pathlib
import sys
import time

TOKEN_S = 1e-3


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--list-devices", action="store_true")
    parser.add_argument("--no-warmup", action="store_true")
    parser.add_argument("-m")
    parser.add_argument("-dev", choices=["none"])
    parser.add_argument("-o", choices=["json"])
    parser.add_argument("-pg", type=lambda text: tuple(map(int, text.split(","))))
    for option, default in (("-p", 512), ("-n", 128), ("-d", 0), ("-r", 5), ("-t", 4)):
        parser.add_argument(option, type=int, default=default)
    asked = parser.parse_args()
    if asked.version:
        sys.stderr.write("version: 1.2.3 (build 7, commit abc)\nbuilt with care\n")
        return
    if asked.list_devices:
        sys.stdout.write("Available devices:\n  (none)\n")
        return
    assert asked.o == "json"
    try:
        model = pathlib.Path(asked.m).read_bytes()
    except OSError:
        sys.exit(f"main: error: failed to load model '{asked.m}'")
    tests = [(p, n) for p, n in ((asked.p, 0), (0, asked.n), asked.pg or (0, 0)) if p + n]
    json.dump([told(asked, p, n, model) for p, n in tests], sys.stdout, indent=2)


def told(asked, n_prompt, n_gen, model):
    samples = []
    for _ in range(asked.r):
        start = time.perf_counter_ns()
        time.sleep(TOKEN_S * (n_prompt + n_gen))
        samples.append(time.perf_counter_ns() - start)
    counts = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": asked.d, "n_threads": asked.t}
    about = {"build_number": 7, "model_filename": asked.m, "model_size": len(model)}
    return {**about, **counts, "samples_ns": samples, "samples_ts": [1e9 / ns for ns in samples]}


if __name__ == "__main__":
    main()
