"""A runner written from docs/wire.md alone: Python's own library, and nothing else on its path.

Its engine is a page of loops for stacks of gated short convolutions and SwiGLU.
"""

import base64
import json
import math
import operator
import os
import platform
import random
import struct
import sys
import threading
import time

WIRE = 3


def rms_norm(x, weight, eps):
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + eps)
    return [v * scale * w for v, w in zip(x, weight)]


def matrix(rows, x):
    return [sum(map(operator.mul, row, x)) for row in rows]


class Model:
    def __init__(self, directory):
        with open(os.path.join(directory, "model.json")) as file:
            self.model = json.load(file)
        self.weights = self.model["weights"]
        self.reset()

    def reset(self):
        d_model, kernel = self.model["d_model"], len(self.weights["blocks.0.mixers.0.conv"][0])
        self.past = [
            [[0.0] * d_model for _ in range(kernel - 1)] for _ in range(self.model["num_blocks"])
        ]

    def fill(self, seed):
        numbers = random.Random(seed)
        self.past = [[[numbers.gauss(0, 1) for _ in z] for z in past] for past in self.past]

    def step(self, token):
        w, eps, d = self.weights, self.model["eps"], self.model["d_model"]
        x = w["embedding.weight"][token]
        for index, past in enumerate(self.past):
            name = f"blocks.{index}."
            u = rms_norm(x, w[name + "mixer_norm.weight"], eps)
            made = matrix(w[name + "mixers.0.in_proj.weight"], u)
            b, c, v = made[:d], made[d : 2 * d], made[2 * d :]
            z = [i * j for i, j in zip(b, v)]
            window = past + [z]
            taps = w[name + "mixers.0.conv"]
            y = [sum(t * window[k][i] for k, t in enumerate(taps[i])) for i in range(d)]
            self.past[index] = window[1:]
            mixed = matrix(w[name + "mixers.0.out_proj.weight"], [i * j for i, j in zip(c, y)])
            x = [i + j for i, j in zip(x, mixed)]
            u = rms_norm(x, w[name + "channel_norm.weight"], eps)
            made = matrix(w[name + "channel_mixer.gate_up_proj.weight"], u)
            gate, up = made[: len(made) // 2], made[len(made) // 2 :]
            hidden = [g / (1 + math.exp(-g)) * h for g, h in zip(gate, up)]
            added = matrix(w[name + "channel_mixer.down_proj.weight"], hidden)
            x = [i + j for i, j in zip(x, added)]
        self.logits = matrix(w["embedding.weight"], rms_norm(x, w["norm.weight"], eps))
        return max(range(len(self.logits)), key=self.logits.__getitem__)

    def finite(self):
        return all(map(math.isfinite, self.logits))


class Runner:
    model = None

    def hello(self, wire, runtime, plugins, memory_limit_bytes, time_limit_s):
        abi = f"{sys.platform}-{platform.machine()}"
        return {"wire": WIRE, "archloop": None, "engine": f"plain {platform.python_version()}",
                "abi": abi, "missing": None}  # fmt: skip

    def start(self, threads):
        return {"memory": read_memory(), "can_reset_peak": False, "cpu_s": time.process_time()}

    def open(self, directory, max_context):
        begun = time.perf_counter()
        self.model, self.room = Model(directory), max_context
        size = sum(8 * len(z) for past in self.model.past for z in past)
        return {"open_s": time.perf_counter() - begun, "state_bytes": size,
                "prefill_pass": max_context, "plans_by_shape": False}  # fmt: skip

    def fill(self, num_tokens, seed):
        self.model.fill(seed)
        return {}

    def prefill(self, ids, fresh):
        if fresh:
            self.model.reset()
        begun = time.perf_counter()
        for token in ids:
            self.model.step(token)
        return {"ms": 1000 * (time.perf_counter() - begun), "finite": self.model.finite()}

    def decode(self, ids, untimed):
        times = []
        for token in ids:
            begun = time.perf_counter()
            self.model.step(token)
            times.append(1000 * (time.perf_counter() - begun))
        return {"ms": times[untimed:], "finite": self.model.finite()}

    def logits(self, parts, steps):
        self.model.reset()
        for part in parts:
            for token in part:
                self.model.step(token)
        rows = [self.model.logits]
        for token in steps:
            self.model.step(token)
            rows.append(self.model.logits)
        packed = [struct.pack(f"<{len(row)}f", *row) for row in rows]
        return {"rows": [base64.b64encode(row).decode() for row in packed]}

    def memory(self):
        return {"memory": read_memory(), "cpu_s": time.process_time()}

    def close(self):
        self.model = None
        return {}


def read_memory():
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    names = {"peak_bytes": "VmHWM", "resident_bytes": "VmRSS", "anonymous_bytes": "RssAnon",
             "file_bytes": "RssFile", "swapped_bytes": "VmSwap"}  # fmt: skip
    return {name: 1024 * int(fields[field].split()[0]) for name, field in names.items()}


def main():
    assert "archloop" not in sys.modules
    assert not any("site-packages" in folder for folder in sys.path)
    runner = Runner()
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        limit = threading.Timer(600, os._exit, (1,))
        limit.start()
        try:
            answer = {"ok": getattr(runner, command)(**request)}
        except Exception as error:
            answer = {"error": {"cause": "crash", "detail": f"{command}: {error!r}"}}
        limit.cancel()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
